"""What every store offers, how patient it is, and how places are named.

The protocol is what a run needs and no more: get, put, create, list, delete. Every store passes the same tests
(tests/cluster/storage/test_contract.py): a put is seen whole or not at all, and a get returns bytes of one version.
"""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long an object store that fails is asked again; folders are not."""

    limit_s: float = 300.0
    """Seconds without a byte, after which it counts as gone. Ranks wait for each other longer than that."""
    stall_s: float = 30.0
    """Seconds of silence after which a connection counts as broken."""


@dataclass
class Traffic:
    """What was read through a store, and how often it had to be asked again."""

    read_bytes: int = 0
    retries: int = 0
    resumed_reads: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, read_bytes: int = 0, retries: int = 0, resumed_reads: int = 0) -> None:
        """Adds to the counters; many threads may."""
        with self._lock:
            self.read_bytes += read_bytes
            self.retries += retries
            self.resumed_reads += resumed_reads


class Store(Protocol):
    """Objects under one URL; keys are relative and use '/'."""

    url: str
    traffic: Traffic

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes [start, end) of an object (end None: to its end). Raises NotFound."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Writes an object whole; readers see the old one or the new one."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Writes an object if there is none. False where one with other bytes is there.

        Of callers at the same moment one wins on folders and on AWS. OpenStack Swift looks before it writes: there
        several may be told that they won, and the bytes of the last of them stay.
        """
        ...

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with the prefix, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        ...


def join(url: str | Path, *parts: str) -> str:
    """The URL of something under another: join("s3://b/p", "x") == "s3://b/p/x"."""
    return "/".join([str(url).rstrip("/"), *parts])


def absolute(url: str | Path) -> str:
    """The same place for a process in another folder."""
    return str(url) if "://" in str(url) else str(Path(url).expanduser().absolute())
