"""Throughput of the data loader, compared with bare decoding and with other loaders.

python -m benchmarks.loader --json                  pairs made of scikit-image's photographs, 1280x720
python -m benchmarks.loader --json --data FOLDER    any dataset of deblur.pack

All give batches of the same crop size with the same number of threads or workers, and are timed from start to last
batch:

ours               deblur/data/loader.py
decode             the same decoder on the same bytes in memory: whole pictures, nothing else
webdataset         a pipeline from webdataset's documentation, with its own decoder (Pillow), in DataLoader workers
webdataset_decode  the same, with our decoder
files              a map-style dataset over PNG files, with our decoder, in DataLoader workers
several            four crops per decoded pair: faster, but fewer scenes in a batch
cut                ours, from shards of squares of 512 pixels, 256 apart
"""

import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.command import option, run
from benchmarks.memory import peak_bytes
from benchmarks.timing import alternate
from cluster.errors import InputError
from cluster.storage import join, open_store
from deblur.config.recipes import DataRecipe
from deblur.data import pictures
from deblur.data.dataset import Dataset
from deblur.data.index import Index, read_index, write_index
from deblur.data.loader import BadSamples, Crop, batches, read_files
from deblur.data.plan import Plan
from deblur.data.shards import PackedSample, write_split

HEIGHT, WIDTH = 720, 1280
CUT, STEP = 512, 256
SEVERAL = 4
SHARD_BYTES = 8 << 20

Pngs = list[tuple[bytes, bytes]]  # (blurred, sharp)


@dataclass(frozen=True, kw_only=True)
class Settings:
    data: str | None = option(None, "A dataset; default: one made of photographs.")
    pairs: int = option(32, "Pairs to generate.")
    crop: int = option(256, "Side of the crops.")
    batch_size: int = option(8, "Pairs per batch.")
    batches: int = option(32, "Batches per round.")
    threads: int = option(2, "Decoders: threads, or worker processes.")
    rounds: int = option(5, "Rounds.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        url = settings.data or made(join(folder, "whole"), settings.pairs)
        pngs = pngs_of(url)
        return _measure(settings, url, pngs, Path(folder))


def _measure(settings: Settings, url: str, pngs: Pngs, folder: Path) -> dict[str, Any]:
    cut_url = cut_squares(join(folder, "cut"), pngs)
    write_files(folder / "files", pngs)
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "ours": lambda: ours(url, settings),
        "decode": lambda: decoded(pngs, settings),
        "files": lambda: _workers(Files(folder / "files", settings.crop), settings),
        "several": lambda: several(pngs, settings),
        "cut": lambda: ours(cut_url, settings),
    }
    if find_spec("webdataset"):
        ways["webdataset"] = lambda: webdataset_batches(url, settings, own_decoder=True)
        ways["webdataset_decode"] = lambda: webdataset_batches(url, settings, own_decoder=False)
    turns = alternate({name: _consume(way, settings.batches) for name, way in ways.items()}, settings.rounds)
    pairs = settings.batches * settings.batch_size
    rates = {name: pairs / statistics.median(found) for name, found in turns.items()}
    first = alternate({name: _consume(way, 1) for name, way in ways.items()}, settings.rounds)
    later = _updates_per_epoch(url, settings) * 9 // 10 * settings.batch_size
    resumed = {"start": lambda: ours(url, settings), "resume": lambda: ours(url, settings, later)}
    starts = alternate({name: _consume(way, 1) for name, way in resumed.items()}, 2 * settings.rounds)
    figures: dict[str, Any] = {f"{name}_pairs_per_second": rate for name, rate in rates.items()}
    for other in list(ways)[1:]:
        figures[f"ours_to_{other}"] = rates["ours"] / rates[other]
        figures[f"ours_to_{other}_of_each_round"] = [b / a for a, b in zip(turns["ours"], turns[other], strict=True)]
    figures |= {f"{name}_seconds_to_first_batch": statistics.median(found) for name, found in first.items()}
    medians = {name: statistics.median(found) for name, found in starts.items()}
    return figures | {
        "seconds_to_start": medians["start"],
        "seconds_to_resume_at_nine_tenths": medians["resume"],
        "resume_to_start": medians["resume"] / medians["start"],
        "share_of_rows_decoded": (HEIGHT + settings.crop) / 2 / HEIGHT,  # on average, as crops are drawn evenly
        "peak_bytes": peak_bytes(consume_ours, url, settings),
        "batch_bytes": 2 * 3 * settings.batch_size * settings.crop**2,
        "bytes_per_picture": statistics.mean(len(png) for pair in pngs for png in pair),
        "scenes_in_a_batch": settings.batch_size,
        "several_scenes_in_a_batch": math.ceil(settings.batch_size / SEVERAL),
        "cut_bytes_to_whole": _size_bytes(cut_url) / _size_bytes(url),
        "left_out": [] if "webdataset" in ways else ["webdataset is not installed"],
    }


def _consume(way: Callable[[], Iterable[Any]], count: int) -> Callable[[], None]:
    def work() -> None:
        stream = iter(way())
        for _ in range(count):
            next(stream)
        if hasattr(stream, "close"):
            stream.close()

    return work


# ---- the loaders


def ours(url: str, settings: Settings, images_seen: int = 0) -> Iterator[Any]:
    """Batches of the product's loader."""
    dataset = _dataset(url)
    data = DataRecipe(batch_size=settings.batch_size, crop=settings.crop)
    sizes = tuple(shard.num_samples for shard in dataset.index.splits["train"].shards)
    plan, bad = Plan(shard_sizes=sizes, batch_size=settings.batch_size, seed=0), BadSamples(0, 1)
    return batches(dataset, plan, range(settings.batch_size), data, images_seen, settings.threads, bad)


def consume_ours(url: str, settings: Settings) -> None:
    """The function whose memory is measured."""
    with closing(ours(url, settings)) as stream:
        for _ in itertools.islice(stream, settings.batches):
            pass


def decoded(pngs: Pngs, settings: Settings) -> Iterator[Any]:
    """Endless lists of decoded pairs, a batch each."""
    with ThreadPoolExecutor(settings.threads) as pool:
        endless = itertools.cycle(pngs)
        while True:
            sides = [side for pair in itertools.islice(endless, settings.batch_size) for side in pair]
            yield list(pool.map(_decode, sides))


def several(pngs: Pngs, settings: Settings) -> Iterator[Any]:
    """Batches of `SEVERAL` crops per decoded pair."""
    data, draw = DataRecipe(crop=settings.crop), np.random.default_rng(0)

    def crops(pair: tuple[bytes, bytes]) -> list[tuple[np.ndarray, ...]]:
        whole = [_decode(side) for side in pair]
        return [_cut(whole, data, draw) for _ in range(SEVERAL)]

    with ThreadPoolExecutor(settings.threads) as pool:
        endless = itertools.cycle(pngs)
        while True:
            some = list(itertools.islice(endless, math.ceil(settings.batch_size / SEVERAL)))
            yield _stacked(list(itertools.chain.from_iterable(pool.map(crops, some)))[: settings.batch_size])


class Files(torch.utils.data.Dataset):
    """Random crops of pairs of PNG files."""

    def __init__(self, folder: Path, crop: int) -> None:
        self.names, self.data = sorted((folder / "sharp").iterdir()), DataRecipe(crop=crop)

    def __len__(self) -> int:
        return 1 << 20  # so that no epoch ends within a turn

    def __getitem__(self, nth: int) -> tuple[np.ndarray, ...]:
        sharp = self.names[nth % len(self.names)]
        whole = [_decode(path.read_bytes()) for path in (sharp.parents[1] / "blurred" / sharp.name, sharp)]
        return _cut(whole, self.data, np.random.default_rng(nth))


def webdataset_batches(url: str, settings: Settings, own_decoder: bool) -> Iterator[Any]:
    """Batches of webdataset's pipeline over the shards."""
    import webdataset as wds

    shards = [str(path) for path in sorted(Path(url, "train").glob("*.tar"))]
    if len(shards) < settings.threads:
        raise InputError(f"{url}: {len(shards)} shards for {settings.threads} workers; make more --pairs")
    data, draw = DataRecipe(crop=settings.crop), np.random.default_rng(0)
    endless = shards * (1 << 10)  # its repeat() would end a batch with every epoch
    pipeline = wds.WebDataset(endless, shardshuffle=len(shards)).shuffle(16)
    pipeline = pipeline.decode("rgb8") if own_decoder else pipeline
    pipeline = pipeline.to_tuple("blurred.png", "sharp.png")
    pipeline = pipeline if own_decoder else pipeline.map_tuple(_decode, _decode)
    pipeline = pipeline.map(lambda pair: _cut(pair, data, draw)).batched(settings.batch_size, collation_fn=_stacked)
    return iter(DataLoader(pipeline, batch_size=None, num_workers=settings.threads))


def _workers(dataset: Files, settings: Settings) -> Iterator[Any]:
    return iter(DataLoader(dataset, settings.batch_size, num_workers=settings.threads, collate_fn=_stacked))


def _decode(png: bytes) -> np.ndarray:
    return pictures.decode(png, "benchmark")


def _cut(whole: Iterable[np.ndarray], data: DataRecipe, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same random crop of both pictures, drawn as in our loader."""
    blurred, sharp = whole
    crop = Crop.draw(sharp.shape[1], sharp.shape[0], data, draw)
    left, top, right, bottom = crop.box
    return tuple(crop.apply(side[top:bottom, left:right]) for side in (blurred, sharp))


def _stacked(pairs: list[tuple[np.ndarray, ...]]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).contiguous() for side in zip(*pairs, strict=True)]


# ---- the data


def made(url: str, count: int) -> str:
    """Writes a dataset of photographs, mirrored at their edges to fill 1280x720; returns its URL."""
    from deblur.data.sample_set import blurred_photographs  # needs scikit-image

    photographs = itertools.cycle([*blurred_photographs("validation"), *blurred_photographs("test")])
    return _write(url, ([_grown(p.blurred), _grown(p.sharp)] for p in itertools.islice(photographs, count)))


def _grown(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels[:HEIGHT, :WIDTH]
    down, right = HEIGHT - pixels.shape[0], WIDTH - pixels.shape[1]
    return np.pad(pixels, ((0, down), (0, right), (0, 0)), mode="symmetric")


def cut_squares(url: str, pngs: Pngs) -> str:
    """Writes the same pairs cut into squares; returns the URL."""

    def squares() -> Iterator[list[np.ndarray]]:
        for pair in pngs:
            whole = [_decode(side) for side in pair]
            height, width = whole[0].shape[:2]
            tops, lefts = ([*range(0, side - CUT, STEP), side - CUT] for side in (height, width))
            for top, left in itertools.product(tops, lefts):
                yield [side[top : top + CUT, left : left + CUT] for side in whole]

    return _write(url, squares())


def _write(url: str, pairs: Iterable[list[np.ndarray]]) -> str:
    store = open_store(url)

    def samples() -> Iterator[PackedSample]:
        for nth, pair in enumerate(pairs):
            blurred, sharp = (pictures.encode_png(side) for side in pair)
            size = pair[0].shape[:2]
            yield PackedSample(key=f"{nth:06d}", blurred_png=blurred, sharp_png=sharp, meta={}, size=size)

    write_index(store, Index(made={}, splits={"train": write_split(store, "train", samples(), SHARD_BYTES)}))
    return url


def write_files(folder: Path, pngs: Pngs) -> None:
    """Writes the same pairs as PNG files."""
    for side, nth_side in (("blurred", 0), ("sharp", 1)):
        (folder / side).mkdir(parents=True)
        for nth, pair in enumerate(pngs):
            (folder / side / f"{nth:06d}.png").write_bytes(pair[nth_side])


def pngs_of(url: str) -> Pngs:
    """PNGs of all training pairs."""
    dataset = _dataset(url)
    found = (
        read_files(dataset, shard, s) for shard in dataset.index.splits["train"].shards for s in dataset.samples(shard)
    )
    return [(blurred[0], sharp[0]) for blurred, sharp in found]


def _dataset(url: str) -> Dataset:
    store = open_store(url)
    return Dataset(store, read_index(store))


def _updates_per_epoch(url: str, settings: Settings) -> int:
    return _dataset(url).index.splits["train"].num_samples // settings.batch_size


def _size_bytes(url: str) -> int:
    return sum(shard.size_bytes for shard in _dataset(url).index.splits["train"].shards)


if __name__ == "__main__":
    run("loader", __doc__, Settings, measure)
