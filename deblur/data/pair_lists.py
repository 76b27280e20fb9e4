"""Pairs that a file lists: RealBlur's lists, and tables of one's own."""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cluster.errors import InputError
from cluster.storage import absolute
from deblur.data.files import LIST_FILE, File, Files
from deblur.data.names import side_of
from deblur.data.pairs import SPLITS, Found, Pair, distinct, key_of


def read_table(path: Path) -> Found:
    """The pairs of a CSV or TSV file with the columns blurred, sharp, and perhaps split and scene.

    Paths are relative to the file's folder; a pair without a split is for training. Raises InputError naming file and
    line.
    """
    if not path.is_file():
        raise InputError(f"--pairs {path}: no such file")
    splits: dict[str, list[Pair]] = {}
    for place, row in _rows(path):
        if not row.get("blurred") or not row.get("sharp"):
            raise InputError(f"{place}: expected the columns blurred and sharp, and perhaps split and scene")
        split = SPLITS.get((row.get("split") or "train").strip().lower())
        if not split:
            raise InputError(f"{place}: the split is {row['split']!r}; expected train, validation or test")
        blurred, sharp = (File(absolute(path.parent), row[side]) for side in ("blurred", "sharp"))
        for file in (blurred, sharp):
            if not Path(file.root, file.key).is_file():
                raise InputError(f"{place}: no such file {file}")
        pair = _pair(blurred, sharp, row.get("scene") or "", place)
        splits.setdefault(split, []).append(pair)
    if not splits:
        raise InputError(f"{path}: has no pairs; expected a header with blurred and sharp, then a line for each pair")
    return Found(layout="table", splits={split: distinct(pairs) for split, pairs in sorted(splits.items())})


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of each line below the header."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file in UTF-8 ({error})") from error
    lines = text.splitlines()
    semicolons = ";" in "".join(lines[:1])  # of spreadsheets where the comma is for decimals
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ";" if semicolons else ","
    for nth, row in enumerate(csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True), 2):
        yield f"{path}: line {nth}", row


def read_list_files(root: str, files: Files) -> dict[str, list[Pair]]:
    """RealBlur: RealBlur_J_train_list.txt and ..._test_list.txt, a pair per line, the sharp one first.

    Raises InputError naming file and line.
    """
    known, splits = set(files.pictures), dict[str, list[Pair]]()
    for name in files.lists:
        match = LIST_FILE.fullmatch(PurePosixPath(name).name)
        assert match, "it was found by this pattern"
        split = SPLITS[match[1].lower()]
        if split in splits:
            raise InputError(f"{root}: has two lists for {split} ({', '.join(files.lists)}); keep one, or use --pairs")
        pairs = []
        for nth, line in enumerate(File(root, name).read().decode().splitlines(), 1):
            place, columns = f"{root}/{name}: line {nth}", line.split()
            if not columns:
                continue
            if len(columns) < 2:
                raise InputError(f"{place}: has one path; expected sharp and blurred")
            sharp, blurred = (File(root, str(PurePosixPath(name).parent / column)) for column in columns[:2])
            for file in (sharp, blurred):
                if file.key not in known:
                    raise InputError(f"{place}: no such picture {file}")
            pairs.append(_pair(blurred, sharp, "", place))
        splits[split] = distinct(pairs)
    return splits


def _pair(blurred: File, sharp: File, scene: str, place: str) -> Pair:
    """Without a scene it is the folder of the sharp picture (of RealBlur the one above gt), or its numbered name's."""
    if os.path.normpath(blurred.key) == os.path.normpath(sharp.key):
        raise InputError(f"{place}: {sharp.key} is on both sides")
    for file, expected in ((blurred, "blurred"), (sharp, "sharp")):
        side = side_of(file)
        if side not in (None, expected):
            raise InputError(f"{place}: {file.key} is {side} by its name, but listed as {expected}; swap the sides")
    name = PurePosixPath(sharp.key).with_suffix("")
    if not scene:
        above = [part for part in name.parent.parts if part.lower() not in ("gt", "sharp", "target", "..", ".", "/")]
        scene = "-".join(above) or re.sub(r"[-_]\d+$", "", name.name)
    return Pair(
        key=key_of(str(PurePosixPath(blurred.key).with_suffix("")).lstrip("./")),
        scene=scene,
        blurred=blurred,
        sharp=sharp,
    )
