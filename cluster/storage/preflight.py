"""Checks that a node can read and write the URLs of a run, before the run starts.

Nodes run these functions as remote tasks, and first import what this module imports: keep it light.
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
    """Creates a small object, yields its key, and deletes it at the end."""
    key = f"preflight/{uuid.uuid4().hex}"
    store.put(key, key.encode())
    try:
        yield key
    finally:
        store.delete(key)


def read_and_write(url: str, key: str) -> None:
    """Reads another machine's marker; then writes, lists, reads and deletes one of its own.

    Raises InputError or StorageUnavailable naming the URL.
    """
    store = open_store(url, RETRY)
    try:
        found = store.get(key)
    except NotFound:
        raise InputError(
            f"{url}: an object that another machine wrote is not visible here; use storage that all nodes share"
        ) from None
    if found != key.encode():
        raise InputError(f"{join(url, key)}: bytes differ from those that another machine wrote")
    with marker(store) as mine:
        if store.get(mine) != mine.encode() or mine not in store.list("preflight/"):
            raise InputError(f"{join(url, mine)}: was written, but cannot be read back or listed")


def ping() -> None:
    """Does nothing: a node that runs it is alive."""


def check_storage_access(readable: str, writable: str, key: str) -> str:
    """The error that this machine sees, or an empty string.

    `readable` is the URL of an object; `writable` a root that holds another machine's marker under `key`.
    """
    try:
        parent, _, name = readable.rpartition("/")
        open_store(parent, RETRY).get(name, 0, 1)
        read_and_write(writable, key)
    except FINAL as error:
        return str(error)
    return ""
