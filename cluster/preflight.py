"""Whether a place can be read and written from here and from other machines, before anything depends on it."""

import contextlib
import uuid
from collections.abc import Iterator

from cluster.errors import InputError, NotFound
from cluster.storage import Retry, Store, join, open_store

ANSWER = Retry(limit_s=15.0, stall_s=10.0)


@contextlib.contextmanager
def marker(store: Store) -> Iterator[str]:
    """The key of a small object that exists as long as the context."""
    key = f"preflight-{uuid.uuid4().hex}"
    store.put(key, key.encode())
    try:
        yield key
    finally:
        store.delete(key)


def read_and_write(url: str, key: str) -> None:
    """Reads a marker that another machine left, and writes, lists, reads and removes one of its own.

    Raises InputError or StorageUnavailable, naming the place.
    """
    store = open_store(url, ANSWER)
    try:
        found = store.get(key)
    except NotFound:
        raise InputError(f"{url}: what another machine wrote there is not to be seen") from None
    if found != key.encode():
        raise InputError(f"{join(url, key)}: holds other bytes than were written")
    with marker(store) as mine:
        if store.get(mine) != mine.encode() or mine not in store.list("preflight-"):
            raise InputError(f"{join(url, mine)}: was written, but is not found again")
