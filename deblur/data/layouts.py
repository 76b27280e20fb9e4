"""Recognizes the layouts of public datasets by the names of folders and files alone (docs/data.md lists them).

A folder or a word in a file's name says which side a picture is on (`input`, `sharp`, ...), a folder which split it
belongs to; everything else must be equal on both sides. What could be something else is refused: a blurred picture
that is taken for a sharp one would spoil a training without an error.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

from cluster.errors import InputError
from deblur.data.files import File, Files, walk
from deblur.data.formats import SUFFIXES
from deblur.data.names import (
    ADVICE,
    Parsed,
    Side,
    name_of,
    parse,
    refuse_splits_in_names,
    refuse_what_may_be_pairs,
    side_of_root,
    split_of_root,
)
from deblur.data.pair_lists import read_list_files
from deblur.data.pairs import Found, Pair, SharpPicture, distinct, key_of

Layout = Literal["auto", "photographs", "combined"]
GoproBlur = Literal["blur", "blur_gamma"]
_UNNAMED = "unnamed"  # the blurred side of HIDE, whose folders have no name for it
_EXPECTED = (
    "a folder for each side, as blur and sharp, input and target, lq and gt, A and B, with train, val and test above "
    "or below; or sharp photographs"
)


def find(root: str, layout: Layout = "auto", blur: GoproBlur | None = None, first_frame: bool = False) -> Found:
    """The pictures below a folder, in a bucket or an archive; `blur` chooses where GOPRO has two kinds of blurred ones.

    Raises InputError for a missing folder, an unknown or ambiguous layout, and a picture without its counterpart, each
    with its path and what to do.
    """
    files = walk(root, first_frame)
    if not files.pictures:
        raise InputError(f"{root}: no pictures ({', '.join(SUFFIXES)}) and no known layout ({_EXPECTED})")
    found = _find(root, layout, files, blur)
    others = files.others
    if found.layout == "list":
        listed = {file for pairs in found.splits.values() for pair in pairs for file in (pair.blurred, pair.sharp)}
        others = others + Counter({"pictures that are in no list": len(files.pictures) - len(listed)})
    return replace(found, not_taken=others, ignored=files.ignored)


def _find(root: str, layout: Layout, files: Files, blur: GoproBlur | None) -> Found:
    if layout == "photographs":
        return Found(layout=layout, photographs=_photographs(root, files))
    if layout == "auto" and files.lists:
        return Found(layout="list", splits=read_list_files(root, files))
    parsed = [parse(File(root, key)) for key in files.pictures]
    refuse_splits_in_names(parsed)
    if layout == "combined":
        for one in parsed:
            if one.side:
                raise InputError(f"--layout combined: {one.file} is a {one.side} picture by its name; {ADVICE}")
        return Found(layout=layout, splits=_by_split([(one, one) for one in _in_split_of([root], parsed)], root))
    if any(one.side for one in parsed):
        return _paired(root, parsed, blur)
    refuse_what_may_be_pairs(root, parsed)
    return Found(layout="photographs", photographs=_photographs(root, files))


def match_folders(blurred: str, sharp: str, first_frame: bool = False) -> Found:
    """Pairs of two folders by their relative paths without endings; folders called train, val and test are splits.

    Raises InputError for a picture without its counterpart, and if the folders are the same or have the sides' names
    swapped.
    """
    if os.path.realpath(blurred) == os.path.realpath(sharp):
        raise InputError(f"--blurred and --sharp are both {blurred}; give the folder of each side")
    if side_of_root(blurred) == "sharp" or side_of_root(sharp) == "blurred":
        raise InputError(f"--blurred {blurred} --sharp {sharp}: by their names they are swapped")
    sides, not_taken, ignored = [], Counter[str](), 0
    for root, word in ((blurred, "input"), (sharp, "target")):
        files = walk(root, first_frame)
        if not files.pictures:
            raise InputError(f"{root}: no pictures in this folder (expected {', '.join(SUFFIXES)})")
        not_taken, ignored = not_taken + files.others, ignored + files.ignored
        sides += [replace(parse(File(root, key), sides=False), word=word) for key in files.pictures]
    splits = _by_split(_matched(_in_split_of([blurred, sharp], sides)), blurred)
    return Found(layout="folders", splits=splits, not_taken=not_taken, ignored=ignored)


def _in_split_of(roots: Sequence[str], parsed: list[Parsed]) -> list[Parsed]:
    """In the split that a root is in, unless folders below say splits. Raises InputError if roots are in several."""
    splits = set() if any(one.split for one in parsed) else {split_of_root(root) for root in roots} - {""}
    if len(splits) > 1:
        raise InputError(f"{' and '.join(roots)} are in different splits; give both sides of one, or use --pairs")
    return [replace(one, split="".join(splits) or one.split) for one in parsed]


def _paired(root: str, parsed: list[Parsed], blur: GoproBlur | None) -> Found:
    parsed, blurred, sharp = _sides(root, parsed, blur)
    parsed = _in_split_of([root], parsed)
    matched = _matched(parsed)
    _refuse_mixed([one for one, _ in matched])
    parents = {PurePosixPath(one.file.key).parent.name for one, _ in matched}
    named = parents in ({"blur"}, {"blur_gamma"}) and sharp == "sharp"
    gopro = named and all(one.folders for one, _ in matched)
    layout = "gopro" if gopro else "flat" if (blurred, sharp) == ("a", "b") else f"{blurred}/{sharp}"
    return Found(layout=layout, splits=_by_split(matched, root, keep=int(gopro)))


def _sides(root: str, parsed: list[Parsed], blur: GoproBlur | None) -> tuple[list[Parsed], str, str]:
    """The pictures of both sides, and the words for blurred and sharp. Raises InputError unless there is one each."""
    blurred, sharp = ({one.word for one in parsed if one.side == side} for side in ("blurred", "sharp"))
    if blurred == {"blur", "blur_gamma"}:
        if not blur:
            raise InputError(f"{root}: choose --blur blur (averaged stored values) or --blur blur_gamma (linear light)")
        parsed = [one for one in parsed if one.side != "blurred" or one.word == blur]
        blurred = {blur}
    if blur and blur not in blurred:
        raise InputError(f"--blur {blur}: {root} has no folders of that name; remove --blur")
    if not blurred and sharp == {"gt"} and any(one.split and not one.side for one in parsed):
        parsed, blurred = _by_name_alone(parsed), {_UNNAMED}
    for side, words in (("blurred", blurred), ("sharp", sharp)):
        if len(words) != 1:
            said = " and ".join(sorted(words)) or "none"
            raise InputError(f"{root}: names for {side} pictures are {said}, expected one; {ADVICE}")
    for one in parsed:
        if not one.side:
            raise InputError(f"{one.file}: neither its folders nor its name say its side; {ADVICE}")
    return parsed, blurred.pop(), sharp.pop()


def _by_name_alone(parsed: Sequence[Parsed]) -> list[Parsed]:
    """HIDE: blurred pictures in folders of splits, all sharp ones in GT; the file's name is what they share."""
    places: dict[str, Parsed] = {}
    for one in parsed:
        if not one.side:
            if one.stem in places:
                raise InputError(f"{places[one.stem].file} and {one.file} have the same name; {ADVICE}")
            places[one.stem] = one
    for one in parsed:
        if one.side and (one.split or one.stem not in places):
            raise InputError(f"{one.file}: has no blurred counterpart; {ADVICE}")
    return [replace(one, word=one.word or _UNNAMED, split=places[one.stem].split, folders=()) for one in parsed]


def _matched(parsed: Sequence[Parsed]) -> list[tuple[Parsed, Parsed]]:
    """(blurred, sharp), sorted. Raises InputError for a picture without a counterpart or with two."""
    sides: dict[Side | None, dict[object, Parsed]] = {"blurred": {}, "sharp": {}}
    for one in parsed:
        mine = sides[one.side]
        if one.identity in mine:
            raise InputError(f"{mine[one.identity].file} and {one.file} would be the same; remove one")
        mine[one.identity] = one
    blurred, sharp = sides["blurred"], sides["sharp"]
    for mine, others, missing in ((blurred, sharp, "sharp"), (sharp, blurred, "blurred")):
        for identity, one in mine.items():
            if identity not in others:
                raise InputError(f"{one.file}: has no {missing} counterpart; add it, or remove the picture")
    return [(blurred[identity], one) for identity, one in sharp.items()]


def _refuse_mixed(blurred: Sequence[Parsed]) -> None:
    """Raises InputError if some pictures are in splits or deeper in folders and others are not."""
    for what, values in (
        ("in a split", [bool(one.split) for one in blurred]),
        (f"{len(blurred[0].folders)} folders deep", [len(one.folders) == len(blurred[0].folders) for one in blurred]),
    ):
        if len(set(values)) > 1:
            yes, no = blurred[values.index(True)], blurred[values.index(False)]
            raise InputError(f"{yes.file} is {what}, {no.file} is not; {ADVICE}")


def _by_split(matched: Iterable[tuple[Parsed, Parsed]], root: str, keep: int = 0) -> dict[str, list[Pair]]:
    """The pairs of each split, without folders that all of its pairs are in: they are a dataset's name.

    keep  number of last folders that are a scene even if there is only one
    """
    found: dict[str, list[tuple[Parsed, Parsed]]] = {}
    for blurred, sharp in matched:
        found.setdefault(blurred.split or "train", []).append((blurred, sharp))
    splits = {}
    for split, both in sorted(found.items()):
        common = _common([blurred.folders[: len(blurred.folders) - keep] for blurred, _ in both])
        splits[split] = distinct([_pair(root, blurred, sharp, blurred.folders[common:]) for blurred, sharp in both])
    return splits


def _common(folders: Sequence[tuple[str, ...]]) -> int:
    """Number of first folders that all have."""
    return sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))


def _pair(root: str, blurred: Parsed, sharp: Parsed, folders: tuple[str, ...]) -> Pair:
    """With the scene that the folders say, or else the name."""
    scene = "-".join(folders) or _scene_of(root, blurred.stem)
    key = key_of(f"{scene}-{blurred.stem}" if folders else blurred.stem)
    return Pair(key=key, scene=scene, blurred=blurred.file, sharp=sharp.file)


def _scene_of(root: str, stem: str) -> str:
    """The name without its last number: GOPR0384_11_00-000001. Long numbers alone are the frames of one video."""
    return name_of(root) if re.fullmatch(r"\d{5,}", stem) else re.sub(r"[-_]\d+$", "", stem)


def _photographs(root: str, files: Files) -> list[SharpPicture]:
    keys = (str(PurePosixPath(path).with_suffix("")) for path in files.pictures)
    named = zip(keys, files.pictures, strict=True)
    return distinct(SharpPicture(key=key_of(key), file=File(root, path)) for key, path in named)
