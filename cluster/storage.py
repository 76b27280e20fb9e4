"""Objects by URL: a bucket with a prefix (s3://bucket/prefix) or a folder.

The protocol is what a run needs and no more: get, put, create, list, delete. Both stores keep one law
(tests/cluster/test_storage.py): a put is seen whole or not at all, and a get returns the bytes of one version. Folders
are here, buckets in s3.py.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cluster.errors import InputError, NotFound


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


def open_store(url: str | Path, retry: Retry | None = None) -> Store:
    """The store of a URL. Nothing is contacted until the first call."""
    url = str(url)
    if url.startswith("s3://"):
        from cluster.s3 import S3Store  # a folder needs no boto3, and a bare machine has none

        return S3Store(url, retry or Retry())
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url):  # pipe: and its like above all: no URL is ever a command
        raise InputError(f"{url}: only folders and s3://bucket/prefix can be used")
    return FolderStore(url)


def join(url: str | Path, *parts: str) -> str:
    """The URL of something under another: join("s3://b/p", "x") == "s3://b/p/x"."""
    return "/".join([str(url).rstrip("/"), *parts])


def absolute(url: str | Path) -> str:
    """The same place for a process in another folder."""
    return str(url) if "://" in str(url) else str(Path(url).expanduser().absolute())


def read_url(url: str) -> bytes:
    """The bytes of one file or object named by its full URL. Raises NotFound."""
    parent, _, name = str(url).rstrip("/").rpartition("/")
    return open_store(parent or ("/" if str(url).startswith("/") else ".")).get(name)


class FolderStore:
    """A folder on a file system that all readers share."""

    def __init__(self, url: str):
        self.url = absolute(url)
        self.traffic = Traffic()
        self._root = Path(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        try:
            with open(self._path(key), "rb") as file:
                file.seek(start)
                data = file.read() if end is None else file.read(end - start)
            self.traffic.add(read_bytes=len(data))
            return data
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{join(self.url, key)}: no such file") from None
        except PermissionError:
            raise InputError(f"{join(self.url, key)}: not readable by this user") from None

    def put(self, key: str, data: bytes) -> None:
        self._write(key, data, os.replace)

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._write(key, data, _link)
        except FileExistsError:
            return self.get(key) == data
        return True

    def _write(self, key: str, data: bytes, place: Callable[[str, Path], None]) -> None:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, data, place)
        except FileExistsError:
            raise
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error

    def list(self, prefix: str = "") -> list[str]:
        # Only the folder that the prefix names is walked, not the whole store.
        start = self._root / prefix.rpartition("/")[0]
        # os.walk passes over folders that somebody removes meanwhile; links to folders are not followed.
        files = (Path(folder, name) for folder, _, names in os.walk(start) for name in names)
        found = (path.relative_to(self._root).as_posix() for path in files)
        return sorted(key for key in found if key.startswith(prefix) and not key.endswith(_PARTIAL))

    def delete(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an empty folder is no object: S3 would not show it either
            left = list(path.parent.iterdir())
            if all(other.name.endswith(_PARTIAL) for other in left):  # what killed writers left
                for partial in left:
                    partial.unlink(missing_ok=True)
                path.parent.rmdir()

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise InputError(f"{key!r}: leads out of {self.url}")
        return self._root / key


_PARTIAL = ".partial"
_UMASK = os.umask(0o022)  # can only be read by setting it
os.umask(_UMASK)
_FILE_MODE = 0o666 & ~_UMASK


def _write_whole(path: Path, data: bytes, place: Callable[[str, Path], None]) -> None:
    """Writes beside the path, makes the bytes durable, then names them: no crash leaves half a file under the name."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, _FILE_MODE)  # mkstemp's is for this user alone
        place(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _link(partial: str, path: Path) -> None:
    """Names the file if the name is free, in one step (NFS included). Raises FileExistsError."""
    os.link(partial, path)
    os.unlink(partial)
