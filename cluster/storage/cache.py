"""A bounded cache on a node's disk of objects that never change, shared by the ranks of the node.

Chunks are fetched whole and written beside their name, then renamed: a reader finds a whole chunk or none. When the
limit is reached chunks chosen at random make room: epochs go round the whole dataset, and of a cache that forgets what
was read longest ago nothing would be left when it is read again.
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
    """Ranges of a store's objects. `version` must change when any object does (a digest of the dataset)."""

    def __init__(self, store: Store, folder: str | Path, limit_bytes: int, version: str) -> None:
        # A folder of its own: what makes room is removed, and the one that is given may hold other things.
        self._store, self._folder, self._limit = store, Path(folder).expanduser() / "chunks", limit_bytes
        self._version, self._told = version, False
        self._locks: dict[str, threading.Lock] = {}  # by the names of chunks

    def get(self, key: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of an object that has as many, from the disk where they are there."""
        first = start // CHUNK_BYTES
        chunks = [self._chunk(key, number) for number in range(first, (end - 1) // CHUNK_BYTES + 1)]
        offset = first * CHUNK_BYTES
        return b"".join(chunks)[start - offset : end - offset]

    def forget(self, key: str, start: int, end: int) -> None:
        """Removes what is held of a range: its bytes turned out to be wrong."""
        for number in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
            self._path(key, number).unlink(missing_ok=True)

    def _chunk(self, key: str, number: int) -> bytes:
        path = self._path(key, number)
        with contextlib.suppress(OSError):
            return path.read_bytes()
        with self._locks.setdefault(path.name, threading.Lock()):  # of threads that miss it at once one fetches it
            with contextlib.suppress(OSError):
                return path.read_bytes()
            data = self._store.get(key, number * CHUNK_BYTES, (number + 1) * CHUNK_BYTES)
            self._take(path, data)
            return data

    def _take(self, path: Path, data: bytes) -> None:
        """Keeps a chunk if that can be done."""
        try:
            self._make_room(len(data))
            self._keep(path, data)
        except FileNotFoundError:  # another rank made room of what was being written
            pass
        except OSError as error:  # a full or broken disk costs speed, not the run
            if not self._told:
                _log.warning("%s: cannot be used as a cache: %s", self._folder, error)
            self._told = True

    def _keep(self, path: Path, data: bytes) -> None:
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

    def _make_room(self, size: int) -> None:
        """Removes chunks, and what killed writers left, until `size` more bytes fit."""
        held = {}
        for path in self._folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another rank was quicker
                held[path] = path.stat().st_size
        total, victims = sum(held.values()) + size, list(held)
        random.shuffle(victims)
        while victims and total > self._limit:
            path = victims.pop()
            path.unlink(missing_ok=True)
            total -= held[path]

    def _path(self, key: str, number: int) -> Path:
        name = hashlib.sha256(f"{self._version}\n{self._store.url}\n{key}".encode()).hexdigest()[:32]
        return self._folder / f"{name}-{number:06d}"
