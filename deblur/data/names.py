"""What names of folders and files say of a picture: which side of a pair it is, which split, which scene."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from cluster.errors import InputError
from cluster.storage import absolute
from deblur.data.files import File, is_archive
from deblur.data.pairs import SPLITS

Side = Literal["blurred", "sharp"]

# Names of folders, and first or last words of file names; A and B (a, b here) only of folders.
BLURRED = ("blur", "blur_gamma", "blurred", "blurry", "input", "inputs", "lq", "a")
SHARP = ("sharp", "target", "targets", "gt", "hq", "b")
_OF_FILES = "|".join(word for word in (*BLURRED, *SHARP) if len(word) > 1)

# Words that speak of pairs or of splits, though in no known layout.
_SUSPICIOUS = re.compile(r"(?!deblur).*blur.*|sharp.*|(in|out)puts?|targets?|gt|lq|hq|degraded|restored")
_SUSPICIOUS_FOLDER = re.compile(r"gt\w*|lr\w*|hr|clean|noisy|.*truth|reference")
_A_OR_B = re.compile(r"(train|val|test)?[-_]?[AaBb]\d?")
_LIKE_A_SPLIT = re.compile(r"train(ing|set)?|test(ing|set)?|val(id|idation|set)?|eval(uation)?|dev(set)?|holdout")
_WORD = re.compile(r"[A-Z][a-z]+|[A-Z]+(?=[A-Z][a-z])|[A-Z]+|[a-z]+")
_AFFIXES = (
    r"(?P<rest>.*\d)[-_ .]?(?P<word>[A-Za-z]+)",
    r"(?P<rest>.+)[-_ .](?P<word>[A-Za-z]+)",
    r"(?P<word>[A-Za-z]+)[-_ .]?(?P<rest>\d.*)",
)

ADVICE = "use --blurred DIR --sharp DIR or --pairs FILE for pairs, --layout photographs if all pictures are sharp"


@dataclass(frozen=True, kw_only=True)
class Parsed:
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
        return side_of_word(self.word) if self.word else None

    @property
    def identity(self) -> tuple[str, tuple[str, ...], str]:
        """What both pictures of a pair have in common."""
        return self.split, self.folders, self.stem


def parse(file: File, *, sides: bool = True) -> Parsed:
    """Without `sides` only the split is looked for. Raises InputError if two names contradict each other."""
    *parts, name = file.key.split("/")
    said = [_folder(part) for part in parts]
    splits = {split for split, _ in said if split}
    words = {word for _, word in said if word and sides}
    for several in (splits, words):
        if len(several) > 1:
            raise InputError(f"{file}: its folders say {' and '.join(sorted(several))}; {ADVICE}")
    stem, affix = _without_affix(PurePosixPath(name).stem)
    if words and affix and side_of_word(affix) != side_of_word(min(words)):
        raise InputError(f"{file}: its folder says {min(words)} and its name {affix}; {ADVICE}")
    left = [part for part, (split, word) in zip(parts, said, strict=True) if not split and not (word and sides)]
    word = (min(words) if words else affix) if sides else ""
    return Parsed(file=file, word=word, split="".join(splits), folders=tuple(left), stem=stem)


def side_of_word(word: str) -> Side:
    return "sharp" if word in SHARP else "blurred"


def side_of(file: File) -> Side | None:
    """The side that a path says; None if it says nothing, or both."""
    *parts, name = file.key.split("/")
    words = list(filter(None, map(_word_of, parts))) or [_without_affix(PurePosixPath(name).stem)[1]]
    found = {side_of_word(word) for word in words if word}
    return found.pop() if len(found) == 1 else None


def side_of_root(root: str) -> Side | None:
    word = _word_of(name_of(root))
    return side_of_word(word) if word else None


def split_of_root(root: str) -> str:
    """The split that a root's name says, or the whole name of one of the two folders above it; "" if none."""
    above = [folder.name.lower() for folder in PurePosixPath(absolute(root)).parents][:2]
    return _folder(name_of(root))[0] or next((SPLITS[name] for name in above if name in SPLITS), "")


def name_of(root: str) -> str:
    """The name of a folder, a prefix or, without its ending, of an archive."""
    name = PurePosixPath(absolute(root)).name
    return PurePosixPath(name).stem if is_archive(root) else name


def _folder(name: str) -> tuple[str, str]:
    """(split, word) that a folder's name says: train_blur says both. Raises InputError for `trainset` and the like."""
    word = _word_of(name)
    like = [each for each in words_of(name) if _LIKE_A_SPLIT.fullmatch(each)]
    if unknown := [each for each in like if each not in SPLITS]:
        raise InputError(f"{name}: may be a split ({unknown[0]}); rename it to train, val or test, or {ADVICE}")
    splits = {SPLITS[each] for each in like}
    if len(splits) > 1:
        raise InputError(f"{name}: says {' and '.join(sorted(splits))}; {ADVICE}")
    return "".join(splits), word


def _word_of(name: str) -> str:
    """The word for a side that is a folder's whole name, or all of it but the split; "" if none."""
    first, _, rest = name.lower().partition("_")
    word = rest if first in SPLITS and rest else name.lower()
    return word if word in (*BLURRED, *SHARP) and (len(word) > 1 or name in ("A", "B")) else ""


def _without_affix(stem: str) -> tuple[str, str]:
    """A file's name without its last or first word, and that word, if it says the side: 1_blur, gt_1."""
    for pattern in (rf"(?P<rest>.+)[-_.](?P<word>{_OF_FILES})", rf"(?P<word>{_OF_FILES})[-_.](?P<rest>.+)"):
        if found := re.fullmatch(pattern, stem, re.IGNORECASE):
            return found["rest"], found["word"].lower()
    return stem, ""


def words_of(name: str) -> list[str]:
    """BlurryImages_01 as blurry and images."""
    return [word.lower() for word in _WORD.findall(name)]


# ---- refusals


def refuse_what_may_be_pairs(root: str, parsed: Sequence[Parsed]) -> None:
    """Raises InputError unless nothing speaks against photographs that are sharp, and for training."""
    for folder in (name_of(root), *(folder.name for folder in PurePosixPath(absolute(root)).parents)):
        if _word_of(folder) or (folder == name_of(root) and _is_suspicious(folder)):
            raise InputError(f"{root}: {folder} may hold one side of pairs; {ADVICE}")
    of_root = split_of_root(root)
    for one in parsed:
        for folder in one.folders:
            if _is_suspicious(folder):
                raise InputError(f"{one.file}: {folder} may hold one side of pairs; {ADVICE}")
        if any(map(_SUSPICIOUS.fullmatch, words_of(one.stem))):
            raise InputError(f"{one.file}: its name may say that it is one side of a pair; {ADVICE}")
        if one.split or of_root:
            raise InputError(
                f"{one.file}: is in a split, but nothing says which pictures are blurred; use --layout combined if "
                "each holds both side by side, or --layout photographs if all are sharp and for training"
            )
    _refuse_twins(parsed)


def refuse_splits_in_names(parsed: Sequence[Parsed]) -> None:
    """Raises InputError if names of files, like train_1.png and test_1.png, may say the split: only folders do."""
    first: dict[str, File] = {}
    for one in parsed:
        for word in words_of(one.stem)[:1]:
            if word in SPLITS:
                first.setdefault(SPLITS[word], one.file)
    if len(first) > 1:
        train, test = list(first.values())[:2]
        raise InputError(f"{train} and {test} may be of different splits; move them into train/ and test/, or {ADVICE}")


def _is_suspicious(folder: str) -> bool:
    patterns = (_SUSPICIOUS, _SUSPICIOUS_FOLDER)
    words = (folder.lower(), *words_of(folder))
    return bool(_A_OR_B.fullmatch(folder)) or any(p.fullmatch(word) for p in patterns for word in words)


def _refuse_twins(parsed: Sequence[Parsed]) -> None:
    """Raises InputError if half of some pictures have the names of others but for one folder, or last or first word."""
    names: dict[tuple[object, ...], dict[str, dict[object, File]]] = {}
    for one in parsed:
        *parts, _ = one.file.key.split("/")
        stem = PurePosixPath(one.file.key).stem
        for at, part in enumerate(parts):
            names.setdefault((*parts[:at], None), {}).setdefault(part, {})[(*parts[at + 1 :], stem)] = one.file
        for pattern in _AFFIXES:
            if found := re.fullmatch(pattern, stem):
                names.setdefault((*parts, pattern), {}).setdefault(found["word"], {})[found["rest"]] = one.file
    for variants in names.values():
        shared = Counter(itertools.chain.from_iterable(variants.values()))
        for those in variants.values():
            twins = [rest for rest in those if shared[rest] > 1]
            if twins and 2 * len(twins) >= len(those):
                first, second = [each[twins[0]] for each in variants.values() if twins[0] in each][:2]
                raise InputError(f"{first} and {second} may be a pair; {ADVICE}")
