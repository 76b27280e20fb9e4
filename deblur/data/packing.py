"""Packing: reads the pictures of a source, writes the shards and the index of a dataset."""

import re
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from cluster.errors import InputError
from cluster.storage import Store, join, open_store
from deblur.data import pairs, pictures, sample_set
from deblur.data.blur import BlurSettings
from deblur.data.blur import blurred as motion_blurred
from deblur.data.camera_blur import CameraBlurSettings, camera_blurred
from deblur.data.pairs import GoproBlur, Pair, Photograph
from deblur.data.shards import INDEX, Index, PackedSample, Split, read_index, write_index, write_split

SAMPLES = "samples"
GOPRO_COUNTS = {"train": 2103, "test": 1111}  # of the complete GOPRO_Large
SAMPLE_CUT, SAMPLE_STEP = 256, 192  # the paper's crop size: small, so that the demo spends little time on decoding
_THREADS = 4


BlurModel = Literal["paper", "camera"]


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    source: tyro.conf.Positional[str]
    """Folder, or `samples` for scikit-image's photographs."""
    out: str
    """Root of the dataset, a folder or s3://bucket/prefix."""
    blur: GoproBlur | None = None
    """Blurred pictures of GOPRO: blur averages stored values, blur_gamma linear light. Required for GOPRO."""
    blur_model: BlurModel = "paper"
    """Blur added to photographs: DeblurGAN's one kernel per picture, or camera: shake, motion, saturation and noise."""
    blurs_per_photo: int = 1
    """Pairs made of each photograph, each with its own blur."""
    validation_scenes: int = 2
    """Scenes moved from train to validation; 0, as in the paper, for no validation."""
    cut: int | None = None
    """Cut training pictures into squares of this side in pixels, so that less is decoded per crop."""
    step: int | None = None
    """Pixels from one square to the next; default: half of --cut."""
    shard_mb: int = 128
    """Size of a shard in MB (1,000,000 bytes)."""
    seed: int = 0
    """Seed of the sample order, the validation scenes and the blur of photographs."""
    overwrite: bool = False
    """Replace an existing dataset."""

    def __post_init__(self) -> None:
        for name in ("cut", "step", "shard_mb", "blurs_per_photo"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        for name in ("validation_scenes", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 0")
        if self.step is not None and (self.cut is None or self.step > self.cut):
            raise InputError(f"--step {self.step} needs a --cut of at least that, so that squares leave no gaps")


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
    read: Callable[[], tuple[Picture, Picture]] = field(compare=False)


def pack(settings: PackSettings) -> Index:
    """Writes the dataset and returns its index. Everything that needs no decoding is validated before any write.

    Raises InputError.
    """
    store = open_store(settings.out)
    splits, made = _sources(settings)
    if INDEX in store.list(INDEX):
        if not settings.overwrite:
            raise InputError(f"{join(store.url, INDEX)}: a dataset exists; choose another --out, or add --overwrite")
        store.delete(INDEX)
    index = Index(made=made, splits={name: _write(store, name, sources, settings) for name, sources in splits.items()})
    _delete_stale_shards(store, index)
    write_index(store, index)
    return index


def pack_samples(store: Store) -> Index:
    """Packs the sample photographs; replaces an existing dataset."""
    return pack(PackSettings(source=SAMPLES, out=store.url, overwrite=True))


def packed_samples(runs: str) -> str:
    """The URL of the sample photographs as a dataset in the runs' root; packs it at the first call."""
    store = open_store(join(runs, "sample-set"))
    try:
        read_index(store)
    except InputError:
        print(f"no --data and no DEBLUR_DATA: packing the sample photographs into {store.url}", flush=True)
        pack_samples(store)
    return store.url


# ---- reading


def _sources(settings: PackSettings) -> tuple[dict[str, list[Source]], dict[str, Any]]:
    """The pairs of each split in packing order, and how they were made, for the index."""
    cut = _cut_of(settings)
    made: dict[str, Any] = {"seed": settings.seed, "cut": cut and list(cut), "shard_mb": settings.shard_mb}
    if settings.source == SAMPLES:
        if settings.blur or settings.cut or _blurs_otherwise(settings):
            raise InputError(
                "samples: blur and cut of the sample photographs are fixed; remove --blur, --blur-model, "
                "--blurs-per-photo and --cut"
            )
        splits = {split: _sample_sources(split) for split in sample_set.PHOTOGRAPHS}
        made |= {"layout": SAMPLES}
    else:
        layout, splits = _read_layout(Path(settings.source), settings)
        made |= {"layout": layout, "blur": settings.blur, "validation_scenes": settings.validation_scenes}
        if _blurs_otherwise(settings):
            made |= _blur_of(settings)
        splits = _with_validation(splits, settings.validation_scenes, settings.seed)
    if not splits["train"]:
        raise InputError(f"{settings.source}: no training pairs found")
    order = np.random.default_rng([settings.seed, len(splits["train"])]).permutation(len(splits["train"]))
    return splits | {"train": [splits["train"][i] for i in order]}, made


def _read_layout(root: Path, settings: PackSettings) -> tuple[str, dict[str, list[Source]]]:
    layout = pairs.layout_of(root)
    if settings.blur and layout != "gopro":
        raise InputError(f"--blur {settings.blur}: {root} is not a GOPRO tree; remove --blur")
    if layout == "photographs":
        found = pairs.find_photographs(root)
        variants = range(settings.blurs_per_photo)
        return layout, {"train": [_photograph_source(p, settings, variant) for p in found for variant in variants]}
    if _blurs_otherwise(settings):
        raise InputError(f"{root}: has blurred pictures; remove --blur-model and --blurs-per-photo")
    find: Callable[[Path, str], list[Pair]] = pairs.find_flat
    if layout == "gopro":
        if not settings.blur:
            raise InputError(f"{root}: choose --blur blur (averaged stored values) or --blur blur_gamma (linear light)")
        find = partial(pairs.find_gopro, blur=settings.blur)
    splits = {split: find(root, split) for split in ("train", "test")}
    pairs.check_sizes(chain.from_iterable(splits.values()))
    return layout, {name: list(map(_pair_source, found)) for name, found in splits.items() if found or name == "train"}


def _with_validation(splits: dict[str, list[Source]], count: int, seed: int) -> dict[str, list[Source]]:
    """Moves `count` scenes of train to validation. Raises InputError if train would be empty."""
    scenes = sorted({source.scene for source in splits["train"]})
    if count == 0:
        return splits
    if count >= len(scenes):
        raise InputError(
            f"--validation-scenes {count}: the training split has only {len(scenes)} scenes; choose "
            f"{max(0, len(scenes) - 1)} or less (0: no validation)"
        )
    chosen = set(np.random.default_rng([seed, count]).choice(scenes, count, replace=False).tolist())
    train = [source for source in splits["train"] if source.scene not in chosen]
    validation = [source for source in splits["train"] if source.scene in chosen]
    return {"train": train, "validation": validation} | {k: v for k, v in splits.items() if k != "train"}


def _pair_source(pair: Pair) -> Source:
    return Source(key=pair.key, scene=pair.scene, read=lambda: (_read(pair.blurred), _read(pair.sharp)))


def _blurs_otherwise(settings: PackSettings) -> bool:
    """Whether photographs get another blur than the default, one of the paper's per photograph."""
    return (settings.blur_model, settings.blurs_per_photo) != ("paper", 1)


def _blur_of(settings: PackSettings) -> dict[str, Any]:
    """How photographs are blurred, for the index. Not there for the default, whose digest must stay as it was."""
    ranges = asdict(CameraBlurSettings() if settings.blur_model == "camera" else BlurSettings())
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in ranges.items()}
    return {
        "blur_model": settings.blur_model,
        "blurs_per_photo": settings.blurs_per_photo,
        "blur_settings": lists,
    }


def _photograph_source(photograph: Photograph, settings: PackSettings, variant: int) -> Source:
    key = photograph.key if settings.blurs_per_photo == 1 else f"{photograph.key}-{variant:02d}"

    def read() -> tuple[Picture, Picture]:
        sharp = _read(photograph.path)
        # Seeded by name, so that adding or removing photographs does not change the others' blur.
        seed = [settings.seed, zlib.crc32(photograph.key.encode())]
        if settings.blur_model == "camera":
            blurred = camera_blurred(sharp.pixels, [*seed, variant])
        else:  # the first blur is that of version 0.1, which made only one
            blurred = motion_blurred(sharp.pixels, [*seed, variant] if variant else seed)
        return Picture(name=f"{sharp.name} (blurred)", pixels=blurred), sharp

    return Source(key=key, scene=photograph.key, read=read)


def _sample_sources(split: str) -> list[Source]:
    def source(found: sample_set.BlurredPhotograph) -> Source:
        both = Picture(name=found.key, pixels=found.blurred), Picture(name=found.key, pixels=found.sharp)
        return Source(key=found.key, scene=found.scene, read=lambda: both)

    return [source(found) for found in sample_set.blurred_photographs(split)]


def _read(path: Path) -> Picture:
    """Decodes a file; keeps the bytes of an 8-bit RGB PNG."""
    data = path.read_bytes()
    header = pictures.open_picture(data, str(path))
    # Bytes 24 and 25 are bit depth and colour type: Pillow calls 16-bit PNGs RGB too.
    plain = header.format == "PNG" and data[24:26] == b"\x08\x02" and "transparency" not in header.info
    kept = data if plain else None
    return Picture(name=str(path), pixels=pictures.decode(data, str(path)), png=kept)


# ---- writing


def _write(store: Store, split: str, sources: Sequence[Source], settings: PackSettings) -> Split:
    cut = _cut_of(settings) if split == "train" else None  # evaluation is on full frames
    with ThreadPoolExecutor(_THREADS) as pool:
        packed = _in_order(pool, partial(_pack_one, cut=cut), sources)
        samples: Iterator[PackedSample] = chain.from_iterable(
            tqdm(packed, total=len(sources), desc=split, unit="pair", disable=None)
        )
        if cut:
            samples = _shuffled(samples, settings.seed)
        return write_split(store, split, samples, settings.shard_mb * 1_000_000)


def _shuffled(samples: Iterable[PackedSample], seed: int) -> Iterator[PackedSample]:
    """The samples in random order, via a temporary folder: otherwise neighbours are squares of the same picture."""
    with tempfile.TemporaryDirectory(prefix="deblur-pack-") as folder:
        spool = open_store(folder)
        waiting = []
        for nth, sample in enumerate(samples):
            spool.put(f"{nth}.blurred", sample.blurred_png)
            spool.put(f"{nth}.sharp", sample.sharp_png)
            waiting.append(replace(sample, blurred_png=b"", sharp_png=b""))
        for nth in np.random.default_rng([seed, len(waiting)]).permutation(len(waiting)):
            yield replace(waiting[nth], blurred_png=spool.get(f"{nth}.blurred"), sharp_png=spool.get(f"{nth}.sharp"))


def _cut_of(settings: PackSettings) -> tuple[int, int] | None:
    """(side, step) of the squares into which training pictures are cut."""
    if settings.source == SAMPLES:
        return SAMPLE_CUT, SAMPLE_STEP
    return (settings.cut, settings.step or -(-settings.cut // 2)) if settings.cut else None


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Source], list[PackedSample]], sources: Iterable[Source]
) -> Iterator[list[PackedSample]]:
    """`pool.map` with bounded look-ahead: a dataset does not fit into memory."""
    pending: deque[Future[list[PackedSample]]] = deque()
    for source in sources:
        pending.append(pool.submit(work, source))
        if len(pending) > 2 * _THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _pack_one(source: Source, cut: tuple[int, int] | None) -> list[PackedSample]:
    """The samples of one pair. Raises InputError naming both pictures if they differ in size."""
    blurred, sharp = source.read()
    if blurred.pixels.shape != sharp.pixels.shape:
        sizes = [f"{p.name} is {p.pixels.shape[1]}x{p.pixels.shape[0]}" for p in (blurred, sharp)]
        raise InputError(f"{' but '.join(sizes)}; the pictures of a pair must have the same size")
    height, width = sharp.pixels.shape[:2]
    if cut is None or (height <= cut[0] and width <= cut[0]):
        pngs = [picture.png or pictures.encode_png(picture.pixels) for picture in (blurred, sharp)]
        return [_packed(source, source.key, pngs, (height, width))]
    squares = []
    for top in starts(height, *cut):
        for left in starts(width, *cut):
            inside = np.s_[top : top + cut[0], left : left + cut[0]]
            pngs = [pictures.encode_png(picture.pixels[inside]) for picture in (blurred, sharp)]
            size = (min(cut[0], height), min(cut[0], width))
            squares.append(_packed(source, f"{source.key}-r{top:05d}-c{left:05d}", pngs, size))
    return squares


def starts(length: int, cut: int, step: int) -> list[int]:
    """Offsets of pieces of length `cut` that cover [0, length); the last one ends at the border."""
    last = max(0, length - cut)
    return [*range(0, last, step), last]


def _packed(source: Source, key: str, pngs: list[bytes], size: tuple[int, int]) -> PackedSample:
    return PackedSample(key=key, blurred_png=pngs[0], sharp_png=pngs[1], meta={"scene": source.scene}, size=size)


def _delete_stale_shards(store: Store, index: Index) -> None:
    """Deletes shards of an earlier or interrupted pack that this index does not have."""
    mine = {shard.name for split in index.splits.values() for shard in split.shards}
    for split in ("train", "validation", "test"):
        for key in store.list(f"{split}/"):
            if re.fullmatch(rf"{split}/\d{{6}}\.tar", key) and key not in mine:
                store.delete(key)


def summary(index: Index) -> str:
    """What was packed, as text for the terminal."""
    lines = [
        f"{name}: {split.num_samples:,} samples in {len(split.shards)} shards, "
        f"{sum(shard.size_bytes for shard in split.shards) / 1e6:,.1f} MB"
        for name, split in index.splits.items()
    ]
    if index.made["layout"] == "gopro" and not index.made["cut"]:
        counts = {name: split.num_samples for name, split in index.splits.items()}
        found = {"train": counts["train"] + counts.get("validation", 0), "test": counts.get("test", 0)}
        complete = "complete" if found == GOPRO_COUNTS else "NOT the complete"
        expected = ", ".join(f"{count:,} {name}" for name, count in GOPRO_COUNTS.items())
        lines.append(f"{complete} GOPRO_Large, which has {expected} pairs")
    return "\n".join([*lines, f"digest {index.digest}"])
