"""The files below a folder, sorted by what they are."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cluster.errors import InputError
from deblur.data.formats import is_picture, missing_reader

LIST_FILE = re.compile(r".*(train|test|val)_?list\.txt", re.IGNORECASE)
"""A file of RealBlur that lists the pairs of a split."""
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


def walk(root: Path) -> Files:
    """The files below a folder; links are followed. Raises InputError for a missing folder, and a loop of links."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    found = []
    for folder, inside, names in os.walk(root, followlinks=True):
        _refuse_loops(Path(folder), inside)
        found += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sort_files(found)


def sort_files(paths: Iterable[str]) -> Files:
    """Sorts paths of files, or keys of objects, by what they are."""
    pictures, lists, others, ignored = [], [], Counter[str](), 0
    for path in sorted(paths):
        parts = PurePosixPath(path)
        if any(map(_is_ignored, parts.parts)):
            ignored += 1
        elif is_picture(path):
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
        hint = missing_reader(ending)
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
