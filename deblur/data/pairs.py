"""Pictures found for packing: pairs of a blurred and a sharp one, or sharp ones to which blur is added."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from cluster.errors import InputError
from deblur.data.files import File, not_taken
from deblur.data.pictures import open_picture, upright_size


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A blurred and a sharp picture of the same moment. `key` is unique in its split, without dots or slashes."""

    key: str
    scene: str
    blurred: File
    sharp: File


@dataclass(frozen=True, kw_only=True)
class SharpPicture:
    """A sharp picture that packing will blur."""

    key: str
    file: File


@dataclass(frozen=True, kw_only=True)
class Found:
    """The pictures of a source, with the files that are not among them."""

    layout: str
    """gopro; flat for A and B; photographs; combined; list; table; folders; or both sides' names, "input/target"."""
    splits: dict[str, list[Pair]] = field(default_factory=dict)
    """The sorted pairs of each split; of the layout combined, both pictures are halves of the same file."""
    photographs: list[SharpPicture] = field(default_factory=list)
    """Sorted; only in the layout photographs."""
    not_taken: Counter[str] = field(default_factory=Counter)
    """Number of files that are no pictures, by their ending."""
    ignored: int = 0
    """Number of hidden files, and of those that operating systems leave."""


SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""Our names of the splits, by those of others."""
Keyed = TypeVar("Keyed", Pair, SharpPicture)
_TITLES = {"flat": "A/B tree", "table": "table", "list": "list files", "folders": "two folders"}


def describe(found: Found) -> str:
    """ "input/target tree: 2,103 train pairs, 1,111 test pairs", and a second line if there are other files."""
    if found.layout == "photographs":
        lines = [f"{len(found.photographs):,} photographs, to which blur is added"]
    else:
        counts = ", ".join(f"{len(pairs):,} {split} pairs" for split, pairs in found.splits.items())
        lines = [f"{_TITLES.get(found.layout, f'{found.layout} tree')}: {counts}"]
    return "\n".join(filter(None, [*lines, not_taken(found.not_taken, found.ignored)]))


def size_problems(pairs: Iterable[Pair]) -> list[str]:
    """A line for each pair whose pictures differ in size, or whose headers cannot be read.

    Reads only headers, of files that can be read in part: those of buckets cannot.
    """
    return [problem for pair in pairs if pair.blurred.is_local and (problem := _size_problem(pair))]


def _size_problem(pair: Pair) -> str:
    try:
        sizes = [_upright_size(file) for file in (pair.blurred, pair.sharp)]
    except InputError as error:
        return str(error)
    if sizes[0] == sizes[1]:
        return ""
    (a, b), (c, d) = sizes
    return f"{pair.blurred} is {a}x{b} but {pair.sharp} is {c}x{d}; {_why_sizes_differ(*sizes)}"


def _upright_size(file: File) -> tuple[int, int]:
    with file.open() as stream, open_picture(stream, str(file)) as picture:
        return upright_size(picture)


def _why_sizes_differ(blurred: tuple[int, int], sharp: tuple[int, int]) -> str:
    if blurred == sharp[::-1]:
        return "one is turned: check its EXIF orientation"
    if blurred[0] * sharp[1] == blurred[1] * sharp[0]:
        return f"one is {max(blurred[0] / sharp[0], sharp[0] / blurred[0]):g} times the other: scale it down"
    return "the pictures of a pair must have the same size"


def key_of(name: str) -> str:
    """A sample's key: webdataset takes everything before the first dot of the last path component as the key."""
    return re.sub(r"[./\\\s]+", "-", name)


def distinct(found: Iterable[Keyed]) -> list[Keyed]:
    """Returns its input. Raises InputError if two have the same key."""
    seen: dict[str, Keyed] = {}
    for one in found:
        if one.key in seen:
            places = [str(x.file if isinstance(x, SharpPicture) else x.sharp) for x in (seen[one.key], one)]
            raise InputError(f"{' and '.join(places)} would have the same key {one.key}; rename one")
        seen[one.key] = one
    return list(seen.values())
