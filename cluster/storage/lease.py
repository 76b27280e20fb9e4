"""One writer per run.

`lease/{n}` is created only if it is absent, and the holder of the run is who stands in the one of the highest n. It
overwrites it every few seconds (a beat); a start that finds no beat for as long as a lease lasts takes n + 1. Whoever
writes on a holder's behalf looks before each commit whether it still stands there. Only "create if absent" is asked of
the store: buckets have it as If-None-Match (not all have If-Match), folders as link(2). Where two are told at the same
moment that they created it (see Store.create), the one who wrote last stands in it, and the other finds that out. No
clocks of two machines are compared.
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
BEATS_PER_EXPIRY = 5
# A beat that fails is followed by another, and an end of the run waits for no storage that is gone.
_RETRY = Retry(limit_s=5.0, stall_s=5.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """What its holder gives to those who write on its behalf."""

    token: int
    holder: str


class Holder:
    """Holds the lease of a run, and beats."""

    def __init__(self, store: Store, number: int, me: dict[str, Any]) -> None:
        self.lease = Lease(number, me["id"])
        self._store, self._me, self._lock = store, me, threading.Lock()

    def renew(self) -> Lease:
        """A lease for others to write with; all before it are void. Raises InputError where it is held no more."""
        return self._write({"id": uuid.uuid4().hex})

    def heartbeat(self) -> None:
        """A sign of life. Raises InputError where it is held no more."""
        self._write({"beat": self._me["beat"] + 1})

    def release(self) -> None:
        """The next start need not wait. Raises InputError where it is held no more."""
        self._write({"released": True})

    def _write(self, change: dict[str, Any]) -> Lease:
        with self._lock:
            check_lease(self._store, self.lease)
            self._me |= change
            self._store.put(_key(self.lease.token), _bytes(self._me))
            self.lease = Lease(self.lease.token, self._me["id"])
            return self.lease


@contextlib.contextmanager
def acquire_lease(url: str, expiry_s: float = EXPIRY_S) -> Iterator[Holder]:
    """Holds the lease of what lies at a URL. Raises InputError where somebody else does.

    A start after a holder that was killed waits for `expiry_s`; after one that ended by itself, a moment.
    """
    store = open_store(url, _RETRY)
    me = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beat": 0, "released": False}
    holder = Holder(store, _take(store, me, expiry_s), me)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(holder, expiry_s, ended), daemon=True)
    beating.start()
    try:
        yield holder
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(StorageUnavailable, InputError):  # then the next start waits
            holder.release()


def check_lease(store: Store, lease: Lease) -> None:
    """Raises InputError when another start has taken the lease over."""
    if _highest(store) > lease.token or not _is_current_holder(store, lease):
        raise InputError(f"{store.url}: another start has taken this run over; this one stops")


def _take(store: Store, me: dict[str, Any], expiry_s: float) -> int:
    while True:
        last = _highest(store)
        if last and not _is_free(store, last, expiry_s):
            raise InputError(
                f"{store.url}: {_holder(store, last)} is writing this run; wait for its end or choose another --run"
            )
        if not store.create(_key(last + 1), _bytes(me)):
            continue  # another start was quicker, and is found alive
        # Others that were told the same at the same moment have written by then. Numbers below the highest are removed,
        # so one that was very slow may have created one of these again.
        time.sleep(min(1.0, expiry_s / BEATS_PER_EXPIRY))
        if _highest(store) == last + 1 and _is_current_holder(store, Lease(last + 1, me["id"])):
            for number in _numbers(store)[:-1]:
                store.delete(_key(number))
            return last + 1


def _is_current_holder(store: Store, lease: Lease) -> bool:
    try:
        return _read(store.get(_key(lease.token))).get("id") == lease.holder
    except NotFound:
        return False


def _is_free(store: Store, number: int, expiry_s: float) -> bool:
    """Whether the holder has left, or gives no sign of life for as long as a lease lasts."""
    try:
        first = store.get(_key(number))
        if _read(first).get("released"):
            return True
        print(
            f"{store.url}: {_holder(store, number)} was writing this run; waiting {expiry_s:.0f} s for a sign of life",
            flush=True,
        )
        end = time.monotonic() + expiry_s
        while time.monotonic() < end:
            time.sleep(min(1.0, expiry_s / BEATS_PER_EXPIRY))
            now = store.get(_key(number))
            if now != first:
                return bool(_read(now).get("released"))
    except NotFound:  # removed by one who took the next number
        return False
    return True


def _beat(holder: Holder, expiry_s: float, ended: threading.Event) -> None:
    while not ended.wait(expiry_s / BEATS_PER_EXPIRY):
        try:
            holder.heartbeat()
        except Exception as error:  # the next beat may succeed, and commits are checked anyway
            _log.warning("lease not renewed: %s", error)


def _holder(store: Store, number: int) -> str:
    try:
        holder = _read(store.get(_key(number)))
    except NotFound:
        return "another start"
    return f"a start on {holder.get('host')} (process {holder.get('pid')})"


def _highest(store: Store) -> int:
    return max(_numbers(store), default=0)


def _numbers(store: Store) -> list[int]:
    names = (key.removeprefix("lease/") for key in store.list("lease/"))
    return sorted(int(name) for name in names if name.isdigit())


def _key(number: int) -> str:
    return f"lease/{number:06d}"


def _bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
