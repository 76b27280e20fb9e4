"""The files below a folder, sorted by what they are."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import InputError
from deblur.data.pictures import SUFFIXES

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
    """Hidden files and folders, and those that operating systems leave."""


def walk(root: Path) -> Files:
    """The files below a folder; links are followed. Raises InputError for a missing folder, and a loop of links."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    pictures, lists, others, ignored = [], [], Counter[str](), 0
    for folder, inside, names in os.walk(root, followlinks=True):
        _refuse_loops(Path(folder), inside)
        ignored += sum(map(_is_ignored, [*inside, *names]))
        inside[:] = [name for name in inside if not _is_ignored(name)]
        for name in names:
            if _is_ignored(name):
                continue
            path, ending = Path(folder, name).relative_to(root).as_posix(), Path(name).suffix.lower()
            if ending in SUFFIXES:
                pictures.append(path)
            elif LIST_FILE.fullmatch(name):
                lists.append(path)
            else:
                others[ending or name] += 1
    return Files(pictures=sorted(pictures), lists=sorted(lists), others=others, ignored=ignored)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _OF_SYSTEMS


def _refuse_loops(folder: Path, inside: list[str]) -> None:
    links = [name for name in inside if (folder / name).is_symlink()]
    ancestors = {os.path.realpath(path) for path in (folder, *folder.absolute().parents)} if links else set()
    for name in links:
        if os.path.realpath(folder / name) in ancestors:
            raise InputError(f"{folder / name}: links to a folder that it is in; remove the link")
