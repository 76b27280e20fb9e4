"""Whether a machine answers, and reaches the places that a run depends on, before anything does.

Nodes run these functions as tasks: what this module imports is what they wait for.
"""

import contextlib
import uuid
from collections.abc import Iterator

from cluster.errors import FINAL, InputError, NotFound
from cluster.storage.base import Retry, Store, join
from cluster.storage.open import open_store

RETRY = Retry(limit_s=15.0, stall_s=10.0)


@contextlib.contextmanager
def marker(store: Store) -> Iterator[str]:
    """The key of a small object that exists as long as the context."""
    key = f"preflight/{uuid.uuid4().hex}"
    store.put(key, key.encode())
    try:
        yield key
    finally:
        store.delete(key)


def read_and_write(url: str, key: str) -> None:
    """Reads a marker that another machine left, and writes, lists, reads and removes one of its own.

    Raises InputError or StorageUnavailable, naming the place.
    """
    store = open_store(url, RETRY)
    try:
        found = store.get(key)
    except NotFound:
        raise InputError(f"{url}: what another machine wrote there is not to be seen") from None
    if found != key.encode():
        raise InputError(f"{join(url, key)}: holds other bytes than were written")
    with marker(store) as mine:
        if store.get(mine) != mine.encode() or mine not in store.list("preflight/"):
            raise InputError(f"{join(url, mine)}: was written, but is not found again")


def ping() -> None:
    """What a node is asked to do to see that it lives."""


def check_storage_access(readable: str, writable: str, key: str) -> str:
    """What is wrong as seen from this machine, empty where nothing is.

    `readable` is the URL of an object; `writable` the root in which another machine left the marker `key`.
    """
    try:
        parent, _, name = readable.rpartition("/")
        open_store(parent, RETRY).get(name, 0, 1)
        read_and_write(writable, key)
    except FINAL as error:
        return str(error)
    return ""
