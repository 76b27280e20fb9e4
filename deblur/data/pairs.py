"""Finds (blurred, sharp) pairs on disk: GOPRO trees, flat A/ and B/ folders, and folders of sharp photographs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from cluster.errors import InputError
from deblur.data.pictures import SUFFIXES, open_picture

Layout = Literal["gopro", "flat", "photographs"]
GoproBlur = Literal["blur", "blur_gamma"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A blurred and a sharp picture of the same moment. `key` is unique in its split, without dots or slashes."""

    key: str
    scene: str
    blurred: Path
    sharp: Path


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A sharp picture that packing will blur."""

    key: str
    path: Path


def layout_of(root: Path) -> Layout:
    """The layout of a folder. Raises InputError if the folder does not exist or mixes layouts."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if any(root.glob("train/*/sharp")) or any(root.glob("test/*/sharp")):
        return "gopro"
    if any((root / part / "A").is_dir() or (root / part / "B").is_dir() for part in ("", "train", "test")):
        return "flat"
    # Otherwise blurred pictures would be used as sharp ones, and test scenes for training.
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        if folder.name in ("blur", "blur_gamma", "A", "B"):
            raise InputError(
                f"{root}: has blurred pictures in {folder}, but not in a known layout; expected {_EXPECTED}"
            )
    return "photographs"


def find_gopro(root: Path, split: str, blur: GoproBlur) -> list[Pair]:
    """The sorted pairs of root/SPLIT/SCENE/{blur, blur_gamma, sharp}/NNNNNN.png; [] without the split's folder.

    Raises InputError for a picture without its counterpart, naming both.
    """
    pairs = []
    for scene in sorted(path for path in (root / split).glob("*") if path.is_dir()):
        for blurred, sharp in _matched(scene / blur, scene / "sharp"):
            key = _key(f"{scene.name}-{sharp.stem}")
            pairs.append(Pair(key=key, scene=scene.name, blurred=blurred, sharp=sharp))
    return _distinct(pairs)


def find_flat(root: Path, split: str) -> list[Pair]:
    """The sorted pairs of root/SPLIT/{A, B} (A blurred, B sharp); for train also of root/{A, B}.

    A pair's scene is its name without the last number, as in GOPR0384_11_00_000001.png or GOPR0384_11_00-000001.png; a
    name without a number is its own scene. Raises InputError for a picture without its counterpart, naming both.
    """
    folders = [root / split] + ([root] if split == "train" else [])
    pairs = []
    for folder in folders:
        if (folder / "A").is_dir() or (folder / "B").is_dir():
            for blurred, sharp in _matched(folder / "A", folder / "B"):
                scene = re.sub(r"[-_]\d+$", "", sharp.stem)
                pairs.append(Pair(key=_key(sharp.stem), scene=scene, blurred=blurred, sharp=sharp))
    return _distinct(pairs)


def find_photographs(root: Path) -> list[Photograph]:
    """All pictures below a folder, sorted. Raises InputError if there are none."""
    found = [
        Photograph(key=_key(path.relative_to(root).with_suffix("").as_posix()), path=path) for path in _pictures(root)
    ]
    if not found:
        raise InputError(f"{root}: no pictures ({', '.join(SUFFIXES)}) and no known layout ({_EXPECTED})")
    return _distinct(found)


Keyed = TypeVar("Keyed", Pair, Photograph)
_EXPECTED = "GOPRO_Large's {train,test}/SCENE/{blur,blur_gamma,sharp}/*.png, or A/ blurred and B/ sharp"


def check_sizes(pairs: Iterable[Pair]) -> None:
    """Reads headers only. Raises InputError for the first pair whose pictures differ in size, naming both."""
    for pair in pairs:
        with (
            open_picture(pair.blurred, str(pair.blurred)) as blurred,
            open_picture(pair.sharp, str(pair.sharp)) as sharp,
        ):
            sizes = blurred.size, sharp.size
        if sizes[0] != sizes[1]:
            (a, b), (c, d) = sizes
            raise InputError(f"{pair.blurred} is {a}x{b} but {pair.sharp} is {c}x{d}; they must have the same size")


def _matched(blurred: Path, sharp: Path) -> list[tuple[Path, Path]]:
    """Pairs of pictures with the same stem in two folders. Raises InputError naming the first without a counterpart."""
    sides = [_by_stem(folder) for folder in (blurred, sharp)]
    for mine, others, folder in ((sides[0], sides[1], sharp), (sides[1], sides[0], blurred)):
        for stem, path in mine.items():
            if stem not in others:
                raise InputError(f"{path}: has no counterpart {folder / path.name}; add it, or remove the first")
    return [(sides[0][stem], sides[1][stem]) for stem in sides[1]]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder. Raises InputError if two have the same stem: one of them would be lost."""
    found: dict[str, Path] = {}
    for path in _pictures(folder):
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} have the same stem; rename or remove one")
        found[path.stem] = path
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _key(name: str) -> str:
    # webdataset takes everything before the first dot of the last path component as the key.
    return re.sub(r"[./\\\s]+", "-", name)


def _distinct(found: Iterable[Keyed]) -> list[Keyed]:
    """Returns its input. Raises InputError if two have the same key."""
    seen: dict[str, Keyed] = {}
    for one in found:
        if one.key in seen:
            raise InputError(f"{one} and {seen[one.key]} would have the same key {one.key}; rename one")
        seen[one.key] = one
    return list(seen.values())
