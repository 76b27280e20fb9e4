"""The pairs that settings name, each with how to read it, in the order in which they are packed."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from cluster.errors import InputError
from cluster.storage import absolute
from deblur.data import layouts, pair_lists, pictures, sample_set
from deblur.data.alignment import misalignment
from deblur.data.blur import BlurSettings
from deblur.data.blur import blurred as motion_blurred
from deblur.data.camera_blur import CameraBlurSettings, camera_blurred
from deblur.data.files import File
from deblur.data.pack_settings import SAMPLES, PackSettings
from deblur.data.pairs import Found, Pair, SharpPicture, describe, size_problems
from deblur.data.photographs import Animated, has_other_gamma, read_photograph

COMPARED = 24  # pairs whose sides are compared before packing


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture, uint8 [H, W, 3], with its original bytes if these are an 8-bit RGB PNG."""

    name: str
    pixels: np.ndarray
    png: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pair to be packed, and how to read it."""

    key: str
    scene: str
    files: tuple[File, ...]
    """From which it is read."""
    read: Callable[[], tuple[Picture, Picture]] = field(compare=False)


def checked_sources(settings: PackSettings) -> tuple[dict[str, list[Source]], dict[str, Any]]:
    """The pairs of each split in packing order, and how they are made, for the index.

    Raises InputError for all that can be found without decoding every picture: sizes that differ, and on a sample of
    pairs sides that do not match.
    """
    splits, made = _sources_of(settings)
    if made["layout"] not in (SAMPLES, "photographs"):
        sources = [source for split in splits.values() for source in split]
        chosen = np.random.default_rng(0).permutation(len(sources))[:COMPARED].tolist()
        refuse_bad(misaligned([sources[i] for i in sorted(chosen)]), len(chosen), settings.max_bad_share)
    return splits, made


def misaligned(sources: Sequence[Source]) -> list[str]:
    """A line for each pair whose sides do not match; those that do not decode are left to packing."""
    problems, identical = [], []
    for source in sources:
        try:
            blurred, sharp = source.read()
        except InputError:
            continue
        if blurred.pixels.shape != sharp.pixels.shape:
            continue
        pair = f"{blurred.name} and {sharp.name}"
        if what := misalignment(blurred.pixels, sharp.pixels):
            problems.append(f"{pair}: {what}")
        if np.array_equal(blurred.pixels, sharp.pixels):
            identical.append(f"{pair}: both sides are the same")
    return problems + (identical if len(identical) == len(sources) else [])


def refuse_bad(bad: Sequence[str], count: int, max_share: float) -> None:
    """Prints what is wrong with each pair. Raises InputError if too many of `count` are bad."""
    for reason in bad:
        print(f"bad pair: {reason}", flush=True)
    if len(bad) > max_share * count:
        raise InputError(
            f"{len(bad)} of {count:,} pairs are bad, more than --max-bad-share {max_share:g}; replace or remove them, "
            f"the first is {bad[0]}"
        )


def _sources_of(settings: PackSettings) -> tuple[dict[str, list[Source]], dict[str, Any]]:
    cut = settings.squares
    made: dict[str, Any] = {"seed": settings.seed, "cut": cut and list(cut), "shard_mb": settings.shard_mb}
    if settings.source == SAMPLES:
        if settings.blur or settings.cut or settings.adds_other_blur:
            raise InputError(
                "samples: blur and cut of the sample photographs are fixed; remove --blur, --blur-model, "
                "--blurs-per-photo and --cut"
            )
        splits = {split: _sample_sources(split) for split in sample_set.PHOTOGRAPHS}
        made |= {"layout": SAMPLES}
    else:
        layout, splits = _read_layout(settings)
        made |= {"layout": layout, "blur": settings.blur, "validation_scenes": settings.validation_scenes}
        if settings.adds_other_blur:
            made |= _blur_of(settings)
        splits = _with_validation(splits, settings.validation_scenes, settings.seed)
    if not splits.get("train"):
        found = " and ".join(splits) or "none"
        raise InputError(f"{settings.named}: no training pairs found (splits: {found}); give the folder above")
    order = np.random.default_rng([settings.seed, len(splits["train"])]).permutation(len(splits["train"]))
    return splits | {"train": [splits["train"][i] for i in order]}, made


def found_in(settings: PackSettings) -> Found:
    """The pictures that settings name. Raises InputError."""
    if settings.pairs:
        return pair_lists.read_table(settings.pairs)
    if settings.blurred and settings.sharp:
        return layouts.match_folders(absolute(settings.blurred), absolute(settings.sharp), settings.first_frame)
    return layouts.find(absolute(settings.source), settings.layout, settings.blur, settings.first_frame)


def _read_layout(settings: PackSettings) -> tuple[str, dict[str, list[Source]]]:
    found = found_in(settings)
    print(describe(found), flush=True)
    if settings.blur and found.layout in ("photographs", "combined", "list", "table", "folders"):
        raise InputError(
            f"--blur {settings.blur}: {settings.named} has no blurred pictures to choose from; remove --blur"
        )
    if found.layout == "photographs":
        variants = range(settings.blurs_per_photo)
        return found.layout, {
            "train": [_photograph_source(p, settings, variant) for p in found.photographs for variant in variants]
        }
    if settings.adds_other_blur:
        raise InputError(f"{settings.named}: has blurred pictures; remove --blur-model and --blurs-per-photo")
    if found.layout == "combined":
        return found.layout, {
            name: [_combined_source(pair, settings.first_frame) for pair in pairs]
            for name, pairs in found.splits.items()
        }
    pairs = list(chain.from_iterable(found.splits.values()))
    refuse_bad(size_problems(pairs), len(pairs), settings.max_bad_share)
    return found.layout, {
        name: [_pair_source(pair, settings.first_frame) for pair in pairs] for name, pairs in found.splits.items()
    }


def _with_validation(splits: dict[str, list[Source]], count: int, seed: int) -> dict[str, list[Source]]:
    """Moves `count` scenes of train to validation if there is none. Raises InputError if train would be empty."""
    if count == 0 or splits.get("validation") or "train" not in splits:
        return splits
    scenes = sorted({source.scene for source in splits["train"]})
    if count >= len(scenes):
        raise InputError(
            f"--validation-scenes {count}: the training split has only {len(scenes)} scenes; choose "
            f"{max(0, len(scenes) - 1)} or less (0: no validation)"
        )
    chosen = set(np.random.default_rng([seed, count]).choice(scenes, count, replace=False).tolist())
    train = [source for source in splits["train"] if source.scene not in chosen]
    validation = [source for source in splits["train"] if source.scene in chosen]
    return {"train": train, "validation": validation} | {k: v for k, v in splits.items() if k != "train"}


def _pair_source(pair: Pair, first_frame: bool) -> Source:
    def read() -> tuple[Picture, Picture]:
        return _read(pair.blurred, first_frame), _read(pair.sharp, first_frame)

    return Source(key=pair.key, scene=pair.scene, files=(pair.blurred, pair.sharp), read=read)


def _combined_source(pair: Pair, first_frame: bool) -> Source:
    def read() -> tuple[Picture, Picture]:
        both = _read(pair.sharp, first_frame)
        width = both.pixels.shape[1]
        if width % 2:
            raise InputError(f"{both.name}: is {width} pixels wide, which two pictures of one size cannot be")
        halves = both.pixels[:, : width // 2], both.pixels[:, width // 2 :]
        blurred, sharp = (Picture(name=both.name, pixels=np.ascontiguousarray(half)) for half in halves)
        return blurred, sharp

    return Source(key=pair.key, scene=pair.scene, files=(pair.blurred, pair.sharp), read=read)


def _blur_of(settings: PackSettings) -> dict[str, Any]:
    """How photographs are blurred, for the index. Not there for the default, whose digest must stay as it was."""
    ranges = asdict(CameraBlurSettings() if settings.blur_model == "camera" else BlurSettings())
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in ranges.items()}
    return {
        "blur_model": settings.blur_model,
        "blurs_per_photo": settings.blurs_per_photo,
        "blur_settings": lists,
    }


def _photograph_source(photograph: SharpPicture, settings: PackSettings, variant: int) -> Source:
    key = photograph.key if settings.blurs_per_photo == 1 else f"{photograph.key}-{variant:02d}"

    def read() -> tuple[Picture, Picture]:
        sharp = _read(photograph.file, settings.first_frame)
        # Seeded by name, so that adding or removing photographs does not change the others' blur.
        seed = [settings.seed, zlib.crc32(photograph.key.encode())]
        if settings.blur_model == "camera":
            blurred = camera_blurred(sharp.pixels, [*seed, variant])
        else:  # the first blur is that of version 0.1, which made only one
            blurred = motion_blurred(sharp.pixels, [*seed, variant] if variant else seed)
        return Picture(name=f"{sharp.name} (blurred)", pixels=blurred), sharp

    return Source(key=key, scene=photograph.key, files=(photograph.file,), read=read)


def _sample_sources(split: str) -> list[Source]:
    def source(found: sample_set.BlurredPhotograph) -> Source:
        both = Picture(name=found.key, pixels=found.blurred), Picture(name=found.key, pixels=found.sharp)
        return Source(key=found.key, scene=found.scene, files=(), read=lambda: both)

    return [source(found) for found in sample_set.blurred_photographs(split)]


def _read(file: File, first_frame: bool) -> Picture:
    """Decodes a file; keeps the bytes of an upright 8-bit RGB PNG."""
    data = file.read()
    header = pictures.open_picture(data, str(file))
    # Bytes 24 and 25 are bit depth and colour type: Pillow calls 16-bit PNGs RGB too.
    plain = header.format == "PNG" and data[24:26] == b"\x08\x02" and not {"transparency", "loop"} & set(header.info)
    try:
        pixels = read_photograph(data, str(file), first_frame=first_frame).pixels
    except Animated as error:
        raise InputError(f"{error}, or add --first-frame") from error
    kept = plain and not header.getexif() and not has_other_gamma(header)
    return Picture(name=str(file), pixels=pixels, png=data if kept else None)
