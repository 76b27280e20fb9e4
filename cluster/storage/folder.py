"""A folder as a store."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import InputError, NotFound
from cluster.storage.base import Traffic, absolute, join


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
