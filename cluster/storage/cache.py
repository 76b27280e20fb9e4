"""A bounded disk cache of immutable objects, shared by the ranks of a node.

Chunks are fetched whole, written to a temporary file and renamed: readers see a whole chunk or none. Eviction is
random: every epoch reads the whole dataset, and LRU would evict each chunk just before it is read again.
"""

import contextlib
import hashlib
import logging
import os
import random
import threading
import uuid
from pathlib import Path

from cluster.storage.base import Store

CHUNK_BYTES = 8 << 20
_log = logging.getLogger(__name__)


class Cache:
    """Caches ranges of a store's objects. `version` must change when any object does: use the dataset's digest."""

    def __init__(self, store: Store, folder: str | Path, limit_bytes: int, version: str) -> None:
        # A subfolder: eviction deletes files, and the given folder may hold others.
        self._store, self._folder, self._limit = store, Path(folder).expanduser() / "chunks", limit_bytes
        self._version, self._warned = version, False
        self._locks: dict[str, threading.Lock] = {}  # by file name of the chunk

    def get(self, key: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of an object of at least that size, from disk if cached."""
        first = start // CHUNK_BYTES
        chunks = [self._chunk(key, number) for number in range(first, (end - 1) // CHUNK_BYTES + 1)]
        offset = first * CHUNK_BYTES
        return b"".join(chunks)[start - offset : end - offset]

    def forget(self, key: str, start: int, end: int) -> None:
        """Evicts a range whose bytes turned out to be wrong."""
        for number in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
            self._path(key, number).unlink(missing_ok=True)

    def _chunk(self, key: str, number: int) -> bytes:
        path = self._path(key, number)
        with contextlib.suppress(OSError):
            return path.read_bytes()
        with self._locks.setdefault(path.name, threading.Lock()):  # one thread fetches, the others wait
            with contextlib.suppress(OSError):
                return path.read_bytes()
            data = self._store.get(key, number * CHUNK_BYTES, (number + 1) * CHUNK_BYTES)
            self._write_if_possible(path, data)
            return data

    def _write_if_possible(self, path: Path, data: bytes) -> None:
        try:
            self._evict(len(data))
            self._write(path, data)
        except FileNotFoundError:  # another rank evicted the temporary file
            pass
        except OSError as error:  # a full or broken disk costs speed, not the run
            if not self._warned:
                _log.warning("%s: cannot write to the cache, continuing without it: %s", self._folder, error)
            self._warned = True

    def _write(self, path: Path, data: bytes) -> None:
        if len(data) > self._limit:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _evict(self, size_bytes: int) -> None:
        """Deletes chunks, and temporary files of killed writers, until `size_bytes` more fit."""
        sizes = {}
        for path in self._folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another rank deleted it
                sizes[path] = path.stat().st_size
        total, victims = sum(sizes.values()) + size_bytes, list(sizes)
        random.shuffle(victims)
        while victims and total > self._limit:
            path = victims.pop()
            path.unlink(missing_ok=True)
            total -= sizes[path]

    def _path(self, key: str, number: int) -> Path:
        name = hashlib.sha256(f"{self._version}\n{self._store.url}\n{key}".encode()).hexdigest()[:32]
        return self._folder / f"{name}-{number:06d}"
