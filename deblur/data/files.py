"""The files of a folder, a bucket or an archive, sorted by what they are, and how to read them."""

import io
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import IO

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.data.formats import how_to_read, is_picture

LIST_FILE = re.compile(r".*(train|test|val)_?list\.txt", re.IGNORECASE)
"""A file of RealBlur that lists the pairs of a split."""
# Of a file, a damaged or encrypted member of a zip, and a damaged one of a tar.
_UNREADABLE = (OSError, KeyError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error)
_OF_SYSTEMS = ("@eaDir", "__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Paths relative to the folder, sorted."""

    pictures: list[str]
    lists: list[str]
    others: Counter[str]
    """Number of other files by their ending in lower case."""
    ignored: int
    """Number of hidden files, and of those that operating systems leave."""


@dataclass(frozen=True)
class File:
    """A file of a folder, of s3://bucket/prefix, or in a zip or tar that is not unpacked."""

    root: str
    key: str
    """Path below the root."""

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def read(self) -> bytes:
        """Raises InputError if it is a local file that cannot be read, and what the store raises for a bucket."""
        if not self.is_local:
            return _bucket(self.root).get(self.key)
        try:
            return _archive(self.root).read(self.key) if is_archive(self.root) else self._path.read_bytes()
        except _UNREADABLE as error:
            raise InputError(f"{self}: cannot be read ({error}); replace or remove it") from error

    def open(self) -> IO[bytes]:
        """For reading a part, like the header of a picture, where that is possible. Raises like `read`."""
        if not self.is_local or is_archive(self.root):
            return io.BytesIO(self.read())
        try:
            return self._path.open("rb")
        except _UNREADABLE as error:
            raise InputError(f"{self}: cannot be read ({error}); replace or remove it") from error

    @property
    def _path(self) -> Path:
        return Path(self.root, self.key)


def walk(root: str, first_frame: bool = False) -> Files:
    """The files below a root. Links are followed. With `first_frame` GIFs are pictures, too.

    Raises InputError for a missing folder or file, an archive that cannot be read, and a loop of links.
    """
    if "://" in root:
        return sort_files(_bucket(root).list(), first_frame)
    if is_archive(root):
        return sort_files(_archive(root).keys(), first_frame)
    if Path(root).is_file():
        raise InputError(f"{root}: is a file; expected a folder, a zip, or a tar without compression")
    if not Path(root).is_dir():
        raise InputError(f"{root}: no such folder")
    found = []
    for folder, inside, names in os.walk(root, onerror=_refuse, followlinks=True):
        _refuse_loops(Path(folder), inside)
        found += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sort_files(found, first_frame)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error}); change its permissions, or remove it") from error


def is_archive(root: str) -> bool:
    return root.lower().endswith((".zip", ".tar")) and "://" not in root


def sort_files(paths: Iterable[str], first_frame: bool = False) -> Files:
    """Sorts paths of files, or keys of objects, by what they are."""
    pictures, lists, others, ignored = [], [], Counter[str](), 0
    for path in sorted(paths):
        parts = PurePosixPath(path)
        if any(map(_is_ignored, parts.parts)):
            ignored += 1
        elif is_picture(path, first_frame):
            pictures.append(path)
        elif LIST_FILE.fullmatch(parts.name):
            lists.append(path)
        else:
            others[parts.suffix.lower() or parts.name] += 1
    return Files(pictures=pictures, lists=lists, others=others, ignored=ignored)


def not_taken(others: Counter[str], ignored: int) -> str:
    """ "not taken: 12 .gif, 3 .txt", or "" if there are no such files."""
    parts = []
    for ending, count in sorted(others.items()):
        hint = how_to_read(ending)
        parts.append(f"{count:,} {ending}" + (f" ({hint})" if hint else ""))
    parts += [f"{ignored:,} hidden or of the operating system"] if ignored else []
    return "not taken: " + ", ".join(parts) if parts else ""


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _OF_SYSTEMS


def _refuse_loops(folder: Path, inside: list[str]) -> None:
    links = [name for name in inside if (folder / name).is_symlink()]
    ancestors = {os.path.realpath(path) for path in (folder, *folder.absolute().parents)} if links else set()
    for name in links:
        if os.path.realpath(folder / name) in ancestors:
            raise InputError(f"{folder / name}: links to a folder that it is in; remove the link")


_bucket = lru_cache(maxsize=8)(open_store)


class _Archive:
    """A zip, or a tar without compression: a compressed one cannot be read from the middle. For several threads."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._read: dict[str, Callable[[], bytes]] = {}
        if path.lower().endswith(".zip"):
            archive = zipfile.ZipFile(path)
            self._read = {i.filename: partial(archive.read, i) for i in archive.infolist() if not i.is_dir()}
        else:
            tar = tarfile.open(path, "r:")  # noqa: SIM115  # stays open, like the zip
            files = [member for member in tar.getmembers() if not member.isdir()]  # links are followed
            self._read = {member.name.removeprefix("./"): partial(_of_tar, tar, member) for member in files}

    def keys(self) -> Iterable[str]:
        return self._read.keys()

    def read(self, key: str) -> bytes:
        with self._lock:
            return self._read[key]()


def _of_tar(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise KeyError(f"{member.name} is no file")
    return file.read()


@lru_cache(maxsize=8)
def _archive(path: str) -> _Archive:
    """Raises InputError if it cannot be read."""
    try:
        return _Archive(path)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable zip or uncompressed tar ({error}); unpack it") from error
