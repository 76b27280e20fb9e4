"""One writer per run.

`lease/{n}` is created only if it is absent, and the highest n holds the run. Its holder overwrites it every few seconds
(a beat); a start that finds no beat for as long as a lease lasts takes n + 1. Whoever writes on a holder's behalf looks
whether its n is still the highest before each commit. Only "create if absent" is asked of the store: buckets have it as
If-None-Match (not all have If-Match), folders as link(2). No clocks of two machines are compared.
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
from typing import Any

from cluster.errors import InputError, NotFound, StorageUnavailable
from cluster.storage import Retry, Store, open_store

EXPIRY_S = 20.0
BEATS_PER_EXPIRY = 5
# A beat that fails is followed by another, and an end of the run waits for no storage that is gone.
_RETRY = Retry(limit_s=5.0, stall_s=5.0)
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(url: str, expiry_s: float = EXPIRY_S) -> Iterator[int]:
    """Holds the lease of what lies at a URL and yields its number. Raises InputError where somebody else does.

    A start after a holder that was killed waits for `expiry_s`; after one that ended by itself, not at all.
    """
    store = open_store(url, _RETRY)
    me = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beat": 0, "released": False}
    number = _take(store, me, expiry_s)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, number, me, expiry_s, ended), daemon=True)
    beating.start()
    try:
        yield number
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(StorageUnavailable, InputError):  # then the next start waits
            store.put(_key(number), _bytes(me | {"released": True}))


def check(store: Store, number: int) -> None:
    """Raises InputError when another start has taken the lease over."""
    if _highest(store) > number:
        raise InputError(f"{store.url}: another start has taken this run over; this one stops")


def _take(store: Store, me: dict[str, Any], expiry_s: float) -> int:
    while True:
        last = _highest(store)
        if last and not _is_free(store, last, expiry_s):
            raise InputError(
                f"{store.url}: {_holder(store, last)} is writing this run; wait for its end or choose another --run"
            )
        # Two starts that come here together: one creates the object, the other begins again and finds it alive. The
        # second look is for one that was slow: numbers below the highest are removed, and could be created again.
        if store.create(_key(last + 1), _bytes(me)) and _highest(store) == last + 1:
            for number in _numbers(store)[:-1]:
                store.delete(_key(number))
            return last + 1


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


def _beat(store: Store, number: int, me: dict[str, Any], expiry_s: float, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(expiry_s / BEATS_PER_EXPIRY):
        beat += 1
        try:
            store.put(_key(number), _bytes(me | {"beat": beat}))
        except (StorageUnavailable, InputError) as error:  # the next beat may succeed; commits are checked anyway
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
