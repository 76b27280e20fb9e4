"""Recognizes the layouts of public datasets by the names of folders and files alone (docs/data.md lists them).

A folder or a word in a file's name says which side a picture is on (`input`, `sharp`, ...), a folder which split it
belongs to; everything else must be equal on both sides. What could be something else is refused: a blurred picture
that is taken for a sharp one would spoil a training without an error.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from cluster.errors import InputError
from cluster.storage import absolute
from deblur.data.files import File, Files, is_archive, walk
from deblur.data.formats import SUFFIXES
from deblur.data.pair_lists import read_list_files
from deblur.data.pairs import Found, Pair, SharpPicture, distinct, key_of

Layout = Literal["auto", "photographs", "combined"]
GoproBlur = Literal["blur", "blur_gamma"]
Side = Literal["blurred", "sharp"]

# Names of folders, and first or last words of file names; A and B (and a, b here) only of folders.
BLURRED = ("blur", "blur_gamma", "blurred", "blurry", "input", "inputs", "lq")
SHARP = ("sharp", "target", "targets", "gt", "hq")
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_UNNAMED = "unnamed"  # the blurred side of HIDE, whose folders have no name for it

# Words that speak of pairs, though in no known layout.
_SUSPICIOUS = re.compile(r"(?!deblur).*blur.*|sharp.*|(in|out)puts?|targets?|gt|lq|hq|degraded|restored")
_SUSPICIOUS_FOLDER = re.compile(r"lr|hr|clean|noisy|truth|reference")
_A_OR_B = re.compile(r"(train|val|test)?[-_]?[AaBb]")
_TWINS = re.compile(r"(?P<rest>.+)[-_.](?P<word>[AaBb])")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

_ADVICE = "use --blurred DIR --sharp DIR or --pairs FILE for pairs, --layout photographs if all pictures are sharp"
_EXPECTED = (
    "a folder for each side, as blur and sharp, input and target, lq and gt, A and B, with train, val and test above "
    "or below; or sharp photographs"
)


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    """A picture's path, taken apart."""

    file: File
    word: str
    """The one that says the side, in lower case; "" if none does."""
    split: str
    """"" if no folder says it."""
    folders: tuple[str, ...]
    """The other folders."""
    stem: str
    """The file's name without its ending and the word."""

    @property
    def side(self) -> Side | None:
        return _side(self.word) if self.word else None

    @property
    def identity(self) -> tuple[str, tuple[str, ...], str]:
        """What both pictures of a pair have in common."""
        return self.split, self.folders, self.stem


def find(root: str, layout: Layout = "auto", blur: GoproBlur | None = None) -> Found:
    """The pictures below a folder; `blur` chooses where GOPRO has two kinds of blurred ones.

    Raises InputError for a missing folder, an unknown or ambiguous layout, and a picture without its counterpart, each
    with its path and what to do.
    """
    files = walk(root)
    if not files.pictures:
        raise InputError(f"{root}: no pictures ({', '.join(SUFFIXES)}) and no known layout ({_EXPECTED})")
    parsed = [_parse(File(root, key), lenient=layout == "photographs") for key in files.pictures]
    found = _find(root, layout, parsed, files, blur)
    return replace(found, not_taken=files.others, ignored=files.ignored)


def _find(root: str, layout: Layout, parsed: list[_Parsed], files: Files, blur: GoproBlur | None) -> Found:
    if layout == "combined":
        for one in parsed:
            if one.side:
                raise InputError(f"--layout combined: {one.file} is a {one.side} picture by its name; {_ADVICE}")
        return Found(layout=layout, splits=_combined(root, parsed))
    if layout == "photographs":
        return Found(layout=layout, photographs=_photographs(parsed))
    if files.lists:
        return Found(layout="list", splits=read_list_files(root, files))
    if any(one.side for one in parsed):
        return _paired(root, parsed, blur)
    _refuse_suspicious(root, parsed)
    return Found(layout="photographs", photographs=_photographs(parsed))


def match_folders(blurred: str, sharp: str) -> Found:
    """Pairs of two folders by their relative paths without endings; folders called train, val and test are splits.

    Raises InputError for a picture without its counterpart.
    """
    sides, not_taken, ignored = [], Counter[str](), 0
    for root, word in ((blurred, "input"), (sharp, "target")):
        files = walk(root)
        if not files.pictures:
            raise InputError(f"{root}: no pictures in this folder (expected {', '.join(SUFFIXES)})")
        not_taken, ignored = not_taken + files.others, ignored + files.ignored
        sides += [replace(_parse(File(root, key), lenient=True), word=word) for key in files.pictures]
    splits = _by_split(_pair(blurred, one, other, one.folders) for one, other in _matched(sides))
    return Found(layout="folders", splits=splits, not_taken=not_taken, ignored=ignored)


# ---- taking names apart


def _parse(file: File, *, lenient: bool) -> _Parsed:
    """With `lenient` only splits are looked for. Raises InputError if two folders contradict each other."""
    *parts, name = file.key.split("/")
    said = [_folder(part) for part in parts]
    splits = [split for split, _ in said if split]
    words = [word for _, word in said if word]
    if len(set(splits)) > 1 or (len(words) > 1 and not lenient):
        both = " and ".join(splits if len(set(splits)) > 1 else words)
        raise InputError(f"{file}: its folders say {both}; {_ADVICE}")
    stem, affix = _without_affix(PurePosixPath(name).stem)
    if not lenient and words and affix and _side(affix) != _side(words[0]):
        raise InputError(f"{file}: its folder says {words[0]} and its name {affix}; {_ADVICE}")
    folders = tuple(
        part for part, (split, word) in zip(parts, said, strict=True) if not split and (lenient or not word)
    )
    word = "" if lenient else (words or [affix])[0]
    return _Parsed(file=file, word=word, split=(splits or [""])[0], folders=folders, stem=stem)


def _side(word: str) -> Side:
    return "blurred" if word in (*BLURRED, "a", _UNNAMED) else "sharp"


def _folder(name: str) -> tuple[str, str]:
    """(split, word) that a folder's name says: train_blur says both."""
    if name in ("A", "B"):
        return "", name.lower()
    lower = name.lower()
    first, _, rest = lower.partition("_")
    if first in SPLITS and rest in (*BLURRED, *SHARP):
        return SPLITS[first], rest
    return SPLITS.get(lower, ""), lower if lower in (*BLURRED, *SHARP) else ""


def _without_affix(stem: str) -> tuple[str, str]:
    """A file's name without its last or first word, and that word, if it says the side: 1_blur, gt_1."""
    words = "|".join((*BLURRED, *SHARP))
    for pattern in (rf"(?P<rest>.+)[-_.](?P<word>{words})", rf"(?P<word>{words})[-_.](?P<rest>.+)"):
        if found := re.fullmatch(pattern, stem, re.IGNORECASE):
            return found["rest"], found["word"].lower()
    return stem, ""


def _refuse_suspicious(root: str, parsed: Sequence[_Parsed]) -> None:
    """Raises InputError where pictures might be pairs or blurred, or are of a test split."""
    name, parent = _name_of(root), PurePosixPath(absolute(root)).parent.name
    above = [parent] if _folder(parent)[1].startswith("blur") else []  # blur/SCENE
    for folder in (name, *above):
        if _is_suspicious(folder):
            raise InputError(f"{root}: {folder} may hold blurred pictures or their counterparts; {_ADVICE}")
    twins: dict[tuple[object, ...], File] = {}
    for one in parsed:
        for folder in one.folders:
            if _is_suspicious(folder):
                raise InputError(f"{one.file}: {folder} may hold one side of pairs; {_ADVICE}")
        if any(map(_SUSPICIOUS.fullmatch, _words(one.stem))):
            raise InputError(f"{one.file}: its name may say that it is one side of a pair; {_ADVICE}")
        if found := _TWINS.fullmatch(one.stem):
            other = twins.setdefault((one.split, one.folders, found["rest"]), one.file)
            if other != one.file:
                raise InputError(f"{other} and {one.file} may be a pair; {_ADVICE}")
        if one.split or name.lower() in SPLITS:
            raise InputError(
                f"{one.file}: is in a split, but nothing says which pictures are blurred; use --layout combined "
                "if each holds both side by side, or --layout photographs if all are sharp and for training"
            )


def _name_of(root: str) -> str:
    """The name of a folder, a prefix or, without its ending, of an archive."""
    name = PurePosixPath(absolute(root)).name
    return PurePosixPath(name).stem if is_archive(root) else name


def _is_suspicious(folder: str) -> bool:
    patterns = (_SUSPICIOUS, _SUSPICIOUS_FOLDER)
    return bool(_A_OR_B.fullmatch(folder)) or any(p.fullmatch(word) for p in patterns for word in _words(folder))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


# ---- pairs


def _paired(root: str, parsed: list[_Parsed], blur: GoproBlur | None) -> Found:
    parsed, blurred, sharp = _sides(root, parsed, blur)
    if not any(one.split for one in parsed):
        split = SPLITS.get(_name_of(root).lower(), "")
        parsed = [replace(one, split=split) for one in parsed]
    matched = _matched(parsed)
    _refuse_mixed([one for one, _ in matched])
    parents = {PurePosixPath(one.file.key).parent.name for one, _ in matched}
    named = parents in ({"blur"}, {"blur_gamma"}) and sharp == "sharp"
    gopro = named and all(one.folders for one, _ in matched)
    layout = "gopro" if gopro else "flat" if (blurred, sharp) == ("a", "b") else f"{blurred}/{sharp}"
    common = _common([one.folders[:-1] if gopro else one.folders for one, _ in matched])
    pairs = (_pair(root, one, other, one.folders[common:]) for one, other in matched)
    return Found(layout=layout, splits=_by_split(pairs))


def _sides(root: str, parsed: list[_Parsed], blur: GoproBlur | None) -> tuple[list[_Parsed], str, str]:
    """The pictures of both sides, and the words for blurred and sharp. Raises InputError unless there is one each."""
    blurred, sharp = ({one.word for one in parsed if one.side == side} for side in ("blurred", "sharp"))
    if blurred == {"blur", "blur_gamma"}:
        if not blur:
            raise InputError(f"{root}: choose --blur blur (averaged stored values) or --blur blur_gamma (linear light)")
        parsed = [one for one in parsed if one.side != "blurred" or one.word == blur]
        blurred = {blur}
    if blur and blur not in blurred:
        raise InputError(f"--blur {blur}: {root} has no folders of that name; remove --blur")
    if not blurred and any(one.split and not one.side for one in parsed):
        parsed, blurred = _by_name_alone(parsed), {_UNNAMED}
    for side, words in (("blurred", blurred), ("sharp", sharp)):
        if len(words) != 1:
            said = " and ".join(sorted(words)) or "none"
            raise InputError(f"{root}: names for {side} pictures are {said}, expected one; {_ADVICE}")
    for one in parsed:
        if not one.side:
            raise InputError(f"{one.file}: neither its folders nor its name say its side; {_ADVICE}")
    return parsed, blurred.pop(), sharp.pop()


def _by_name_alone(parsed: Sequence[_Parsed]) -> list[_Parsed]:
    """HIDE: blurred pictures in folders of splits, all sharp ones in GT; the file's name is what they share."""
    places: dict[str, _Parsed] = {}
    for one in parsed:
        if not one.side:
            if one.stem in places:
                raise InputError(f"{places[one.stem].file} and {one.file} have the same name; {_ADVICE}")
            places[one.stem] = one
    for one in parsed:
        if one.side and (one.split or one.stem not in places):
            raise InputError(f"{one.file}: has no blurred counterpart; {_ADVICE}")
    return [replace(one, word=one.word or _UNNAMED, split=places[one.stem].split, folders=()) for one in parsed]


def _matched(parsed: Sequence[_Parsed]) -> list[tuple[_Parsed, _Parsed]]:
    """(blurred, sharp), sorted. Raises InputError for a picture without a counterpart or with two."""
    sides: dict[Side | None, dict[object, _Parsed]] = {"blurred": {}, "sharp": {}}
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


def _refuse_mixed(blurred: Sequence[_Parsed]) -> None:
    """Raises InputError if some pictures are in splits or deeper in folders and others are not."""
    for what, values in (
        ("in a split", [bool(one.split) for one in blurred]),
        (f"{len(blurred[0].folders)} folders deep", [len(one.folders) == len(blurred[0].folders) for one in blurred]),
    ):
        if len(set(values)) > 1:
            yes, no = blurred[values.index(True)], blurred[values.index(False)]
            raise InputError(f"{yes.file} is {what}, {no.file} is not; {_ADVICE}")


def _common(folders: Sequence[tuple[str, ...]]) -> int:
    """Number of first folders that all have: a dataset's name, which says nothing of a scene."""
    return sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False)))


def _pair(root: str, blurred: _Parsed, sharp: _Parsed, folders: tuple[str, ...]) -> tuple[str, Pair]:
    """(split, pair), with the scene that the folders say, or else the name."""
    scene = "-".join(folders) or _scene_of(root, blurred.stem)
    key = key_of(f"{scene}-{blurred.stem}" if folders else blurred.stem)
    pair = Pair(key=key, scene=scene, blurred=blurred.file, sharp=sharp.file)
    return blurred.split or "train", pair


def _scene_of(root: str, stem: str) -> str:
    """The name without its last number: GOPR0384_11_00-000001. Long numbers alone are the frames of one video."""
    if re.fullmatch(r"\d{5,}", stem):
        return _name_of(root)
    return re.sub(r"[-_]\d+$", "", stem)


def _by_split(pairs: Iterable[tuple[str, Pair]]) -> dict[str, list[Pair]]:
    splits: dict[str, list[Pair]] = {}
    for split, pair in pairs:
        splits.setdefault(split, []).append(pair)
    return {split: distinct(found) for split, found in sorted(splits.items())}


def _combined(root: str, parsed: Sequence[_Parsed]) -> dict[str, list[Pair]]:
    """pix2pix' layout: each picture holds the blurred one in its left half and the sharp one in its right."""
    common = _common([one.folders for one in parsed])
    return _by_split([_pair(root, one, one, one.folders[common:]) for one in parsed])


def _photographs(parsed: Sequence[_Parsed]) -> list[SharpPicture]:
    keys = (str(PurePosixPath(one.file.key).with_suffix("")) for one in parsed)
    return distinct(SharpPicture(key=key_of(key), file=one.file) for key, one in zip(keys, parsed, strict=True))
