"""A folder as a store."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from cluster.errors import InputError, NotFound
from cluster.storage.base import Traffic, absolute, join

_PARTIAL = ".partial"
_UMASK = os.umask(0o022)  # can only be read by setting it
os.umask(_UMASK)
_FILE_MODE = 0o666 & ~_UMASK


class FolderStore:
    """A folder on a file system that all nodes share."""

    def __init__(self, url: str):
        self.url = absolute(url)
        self.traffic = Traffic()
        self._root = Path(self.url)

    def __reduce__(self) -> tuple[type["FolderStore"], tuple[str]]:  # a lock cannot be pickled
        return FolderStore, (self.url,)

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
            raise InputError(f"{join(self.url, key)}: permission denied; make it readable for this user") from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):  # others may pass, as on NFS
                raise
            place = join(self.url, key)
            raise InputError(f"{place}: cannot be read ({error.strerror}); replace or remove it") from error

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
            raise InputError(
                f"{path}: cannot be written: {error.strerror}; check permissions and free space"
            ) from error

    def list(self, prefix: str = "") -> list[str]:
        # Walks only the folder that the prefix names, not the whole store.
        start = self._root / prefix.rpartition("/")[0]
        # os.walk skips folders that are removed meanwhile, and does not follow links to folders.
        files = (Path(folder, name) for folder, _, names in os.walk(start) for name in names)
        found = (path.relative_to(self._root).as_posix() for path in files)
        return sorted(key for key in found if key.startswith(prefix) and not key.endswith(_PARTIAL))

    def delete(self, *keys: str) -> None:
        for path in map(self._path, keys):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # like S3, which has no empty folders
                left = list(path.parent.iterdir())
                if all(other.name.endswith(_PARTIAL) for other in left):  # temporary files of killed writers
                    for partial in left:
                        partial.unlink(missing_ok=True)
                    path.parent.rmdir()

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise InputError(f"{key!r}: leads outside {self.url}; use a relative key without '..'")
        return self._root / key


def _write_whole(path: Path, data: bytes, place: Callable[[str, Path], None]) -> None:
    """Writes a temporary file, syncs it, then renames or links it: no crash leaves half a file under the name."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, _FILE_MODE)  # mkstemp's mode excludes other users
        place(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _link(partial: str, path: Path) -> None:
    """Links the file under a new name, atomically (on NFS too). Raises FileExistsError."""
    os.link(partial, path)
    os.unlink(partial)
