"""The protocol of every store, its retry limits, and how URLs are joined.

The protocol has what a run needs and no more: get, put, create, list, delete. Every store passes the same tests
(tests/cluster/storage/test_contract.py): readers see the whole of a put or nothing of it, and a get returns bytes of
one version.
"""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long failed requests to an object store are retried; folders are not retried."""

    limit_s: float = 300.0
    """Seconds without receiving a byte, after which a request fails. Must be shorter than the ranks' timeout."""
    stall_s: float = 30.0
    """Seconds of silence after which a connection counts as lost."""


@dataclass
class Traffic:
    """Counters of one store: bytes read, retries, and reads that were resumed after a lost connection."""

    read_bytes: int = 0
    retries: int = 0
    resumed_reads: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, read_bytes: int = 0, retries: int = 0, resumed_reads: int = 0) -> None:
        """Adds to the counters; thread-safe."""
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
        """Writes an object atomically; readers see the old version or the new one."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Writes an object if the key is absent. Returns False if an object with other bytes exists.

        Of concurrent callers exactly one succeeds on folders and on AWS. OpenStack Swift checks first and writes later:
        there several callers may get True, and the last write stays.
        """
        ...

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with the prefix, sorted."""
        ...

    def delete(self, *keys: str) -> None:
        """Deletes objects, in one request per 1,000 keys; absent ones are no error."""
        ...


def join(url: str | Path, *parts: str) -> str:
    """The URL of something under another: join("s3://b/p", "x") == "s3://b/p/x"."""
    return "/".join([str(url).rstrip("/"), *parts])


def absolute(url: str | Path) -> str:
    """The same location for a process with another working directory."""
    return str(url) if "://" in str(url) else str(Path(url).expanduser().absolute())
