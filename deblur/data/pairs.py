"""(blurred, sharp) pairs on disk: the GOPRO tree, flat A/ and B/ folders, and folders of sharp photographs alone."""

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
    """Two pictures of one moment. `key` is unique in its split and has neither dots nor slashes."""

    key: str
    scene: str
    blurred: Path
    sharp: Path


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A sharp picture, still to be blurred."""

    key: str
    path: Path


def layout_of(root: Path) -> Layout:
    """Which of the layouts a folder has. Raises InputError where there is no such folder."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if any(root.glob("train/*/sharp")) or any(root.glob("test/*/sharp")):
        return "gopro"
    if any((root / part / "A").is_dir() or (root / part / "B").is_dir() for part in ("", "train", "test")):
        return "flat"
    # Blurred pictures must not be taken for sharp ones, nor test scenes for training ones.
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        if folder.name in ("blur", "blur_gamma", "A", "B"):
            raise InputError(
                f"{root}: has blurred pictures in {folder} but not the layout that goes with them; expected {_EXPECTED}"
            )
    return "photographs"


def find_gopro(root: Path, split: str, blur: GoproBlur) -> list[Pair]:
    """The pairs of root/SPLIT/SCENE/{blur, blur_gamma, sharp}/NNNNNN.png, in order; [] without the split's folder.

    Raises InputError for a picture without its partner, naming both.
    """
    pairs = []
    for scene in sorted(path for path in (root / split).glob("*") if path.is_dir()):
        for blurred, sharp in _matched(scene / blur, scene / "sharp"):
            key = _key(f"{scene.name}-{sharp.stem}")
            pairs.append(Pair(key=key, scene=scene.name, blurred=blurred, sharp=sharp))
    return _distinct(pairs)


def find_flat(root: Path, split: str) -> list[Pair]:
    """The pairs of root/SPLIT/{A, B} (A blurred, B sharp), in order; for train also of root/{A, B}.

    A pair's scene is its name without the last number, as in GOPR0384_11_00_000001.png or GOPR0384_11_00-000001.png; a
    name without one is a scene of its own. Raises InputError for a picture without its partner, naming both.
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
    """All pictures below a folder, in order. Raises InputError where there is none."""
    found = [
        Photograph(key=_key(path.relative_to(root).with_suffix("").as_posix()), path=path) for path in _pictures(root)
    ]
    if not found:
        raise InputError(f"{root}: no pictures ({', '.join(SUFFIXES)}) and no known layout ({_EXPECTED})")
    return _distinct(found)


Keyed = TypeVar("Keyed", Pair, Photograph)
_EXPECTED = "GOPRO_Large's {train,test}/SCENE/{blur,blur_gamma,sharp}/*.png, or A/ blurred and B/ sharp"


def check_sizes(pairs: Iterable[Pair]) -> None:
    """Reads headers alone. Raises InputError for the first pair whose pictures differ in size, naming both."""
    for pair in pairs:
        with (
            open_picture(pair.blurred, str(pair.blurred)) as blurred,
            open_picture(pair.sharp, str(pair.sharp)) as sharp,
        ):
            sizes = blurred.size, sharp.size
        if sizes[0] != sizes[1]:
            (a, b), (c, d) = sizes
            raise InputError(f"{pair.blurred} is {a}x{b} but {pair.sharp} is {c}x{d}; a pair must be of one size")


def _matched(blurred: Path, sharp: Path) -> list[tuple[Path, Path]]:
    """Pictures of equal stems in two folders. Raises InputError naming the first without a partner."""
    sides = [_by_stem(folder) for folder in (blurred, sharp)]
    for mine, others, folder in ((sides[0], sides[1], sharp), (sides[1], sides[0], blurred)):
        for stem, path in mine.items():
            if stem not in others:
                raise InputError(
                    f"{path}: has no partner {folder / path.name}; add it, or remove the one that is alone"
                )
    return [(sides[0][stem], sides[1][stem]) for stem in sides[1]]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of a folder. Raises InputError where two have one stem: one of them would be lost."""
    found: dict[str, Path] = {}
    for path in _pictures(folder):
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} have the same stem; rename or remove one")
        found[path.stem] = path
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _key(name: str) -> str:
    # In a tar, webdataset takes all up to the first dot of the last part for the key.
    return re.sub(r"[./\\\s]+", "-", name)


def _distinct(found: Iterable[Keyed]) -> list[Keyed]:
    """The same. Raises InputError where two would have one key."""
    seen: dict[str, Keyed] = {}
    for one in found:
        if one.key in seen:
            raise InputError(f"{one} and {seen[one.key]} would have the same name {one.key}; rename one")
        seen[one.key] = one
    return list(seen.values())
