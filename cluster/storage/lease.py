"""A lease with a fencing token: one writer per run.

    lease/{token}            who holds it; written once, by create-if-absent
    lease/{token}.heartbeat  a counter that the holder increments every few seconds, and whether it released the lease

A process takes over by creating token + 1 once the holder has released the lease or has sent no heartbeat for the
expiry time. Before it writes anything to the run it deletes all lower tokens. So a writer still holds the lease as
long as its own object exists with its own id, and `check_lease`, which every commit calls, is one GET. Nothing can
recreate a deleted token under the old id: heartbeats go to an object of their own, and only new ids are created.

Only create-if-absent is required of the store: buckets have it as If-None-Match (not all have If-Match), folders as
link(2). Where it is not atomic and two processes create the same token (see Store.create), the last write stays, and
the other process finds a foreign id. After a takeover there is a pause, in which such late writes, and commits checked
just before the takeover, arrive. Clocks of two machines are never compared.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import InputError, NotFound, StorageUnavailable
from cluster.storage.base import Retry, Store
from cluster.storage.open import open_store

EXPIRY_S = 20.0
HEARTBEATS_PER_EXPIRY = 5
# Short: a failed heartbeat is followed by another, and the end of a run must not wait for an unavailable store.
_RETRY = Retry(limit_s=5.0, stall_s=5.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """What the holder passes to workers that write on its behalf."""

    token: int
    holder: str


class Holder:
    """Holds the lease of a run."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self.lease = lease
        self._store, self._lock, self._heartbeats = store, threading.Lock(), 0

    def renew(self) -> Lease:
        """Voids the lease and returns a new one, for the next group of workers. Raises InputError if it was lost."""
        with self._lock:
            check_lease(self._store, self.lease)
            lease = Lease(self.lease.token + 1, uuid.uuid4().hex)
            if not _create(self._store, lease):
                raise _lost(self._store)
            self.lease = lease
            return lease

    def heartbeat(self) -> None:
        """Raises InputError if the lease was lost."""
        self._heartbeats += 1
        self._write({"heartbeats": self._heartbeats})

    def release(self) -> None:
        """Lets the next process take over without waiting for expiry. Raises InputError if the lease was lost."""
        self._write({"released": True})

    def _write(self, state: dict[str, Any]) -> None:
        with self._lock:
            check_lease(self._store, self.lease)
            self._store.put(f"{_key(self.lease.token)}.heartbeat", json.dumps(state).encode())


@contextlib.contextmanager
def acquire_lease(url: str, expiry_s: float = EXPIRY_S) -> Iterator[Holder]:
    """Holds the lease of a run's URL within the context. Raises InputError if another process holds it.

    Waits up to `expiry_s` if the last holder was killed, and about a second if it released the lease.
    """
    store = open_store(url, _RETRY)
    holder = Holder(store, _take(store, expiry_s))
    ended = threading.Event()
    thread = threading.Thread(target=_send_heartbeats, args=(holder, expiry_s, ended), daemon=True)
    thread.start()
    try:
        yield holder
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(StorageUnavailable, InputError):  # the next process then waits for expiry
            holder.release()


def check_lease(store: Store, lease: Lease) -> None:
    """Raises InputError if another process, or a later group of workers, has taken the lease over. One request."""
    try:
        holder = _parse(store.get(_key(lease.token))).get("id")
    except NotFound:
        holder = None
    if holder != lease.holder:
        raise _lost(store)


def _lost(store: Store) -> InputError:
    return InputError(f"{store.url}: lease lost: another process now owns this run; stopping")


def _take(store: Store, expiry_s: float) -> Lease:
    while True:
        last = _newest_token(store.list("lease/"))
        if last and not _is_free(store, last, expiry_s):
            raise InputError(
                f"{store.url}: {_describe_holder(store, last)} is writing this run; wait until it ends, or choose "
                "another --run"
            )
        lease = Lease(last + 1, uuid.uuid4().hex)
        if not _create(store, lease):
            continue  # another process was faster, and is found alive
        time.sleep(min(1.0, expiry_s / HEARTBEATS_PER_EXPIRY))
        with contextlib.suppress(InputError):  # another process created the same token after this one
            check_lease(store, lease)
            return lease


def _create(store: Store, lease: Lease) -> bool:
    """Creates the token and voids all lower ones. False if another process has created this token or a higher one."""
    holder = {"id": lease.holder, "host": socket.gethostname(), "pid": os.getpid()}
    if not store.create(_key(lease.token), json.dumps(holder).encode()):
        return False
    keys = store.list("lease/")
    if _newest_token(keys) > lease.token:  # this process was suspended before its create: the token was deleted by then
        return False
    store.delete(*(key for key in keys if key < _key(lease.token)))
    return True


def _is_free(store: Store, token: int, expiry_s: float) -> bool:
    """Whether the holder has released the lease, or sends no heartbeat until it expires."""
    try:
        first = _state(store, token)
        if first.get("released"):
            return True
        holder = _describe_holder(store, token)
        print(f"{store.url}: lease held by {holder}; waiting {expiry_s:.0f} s for its heartbeat to expire", flush=True)
        end = time.monotonic() + expiry_s
        while time.monotonic() < end:
            time.sleep(min(1.0, expiry_s / HEARTBEATS_PER_EXPIRY))
            now = _state(store, token)
            if now != first:
                return bool(now.get("released"))
    except NotFound:  # deleted by a process that took over
        return False
    return True


def _state(store: Store, token: int) -> dict[str, Any]:
    """The holder with its newest heartbeat. Raises NotFound if the token was deleted."""
    state = _parse(store.get(_key(token)))
    with contextlib.suppress(NotFound):  # none was sent yet
        state |= _parse(store.get(f"{_key(token)}.heartbeat"))
    return state


def _send_heartbeats(holder: Holder, expiry_s: float, ended: threading.Event) -> None:
    while not ended.wait(expiry_s / HEARTBEATS_PER_EXPIRY):
        try:
            holder.heartbeat()
        except Exception as error:  # the next heartbeat may succeed, and commits check the lease themselves
            _log.warning("heartbeat failed: %s", error)


def _describe_holder(store: Store, token: int) -> str:
    try:
        holder = _parse(store.get(_key(token)))
    except NotFound:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _newest_token(keys: list[str]) -> int:
    names = (key.removeprefix("lease/") for key in keys)
    return max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)


def _key(token: int) -> str:
    return f"lease/{token:06d}"


def _parse(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
