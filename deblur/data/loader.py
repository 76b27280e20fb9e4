"""From shards to batches: decode, crop and collate, in threads, ahead of need. stream.py fetches the bytes.

Threads rather than processes: reading waits for the network and PNG decoding releases the GIL, so nothing is forked and
no shared memory is needed.
"""

import contextlib
import logging
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from cluster.errors import DamagedError, InputError
from deblur.config import randomness
from deblur.config.recipes import DataRecipe
from deblur.data import pictures
from deblur.data.dataset import Dataset
from deblur.data.index import Sample, Shard, Split
from deblur.data.pictures import Undecodable
from deblur.data.plan import Plan
from deblur.data.shards import unpack
from deblur.data.stream import Slice, updates

UPDATES_AHEAD = 3

Pair = tuple[np.ndarray, np.ndarray]  # (blurred, sharp), uint8 RGB [H, W, 3]
File = tuple[bytes, str]  # content and name
_log = logging.getLogger(__name__)


class BadSamples:
    """Counts, logs once each, and limits the samples that do not decode although their bytes are right.

    `max_share` is the allowed fraction of the images used so far, or of one epoch during the first.
    """

    def __init__(self, max_share: float, num_samples: int) -> None:
        self.count = 0  # on this rank
        self._max_share, self._num_samples = max_share, num_samples
        self._named: set[str] = set()
        self._lock = threading.Lock()

    def add(self, place: str, error: Undecodable) -> None:
        """Counts one use of a sample that does not decode."""
        with self._lock:
            self.count += 1
            known = place in self._named
            self._named.add(place)
        if not known:
            _log.warning("bad sample skipped: %s", error)

    def check(self, count: int, images: int) -> None:
        """Raises InputError if `count` bad samples, summed over ranks, are too many for this number of images."""
        allowed = self._max_share * max(images, self._num_samples)
        if count > allowed:
            raise InputError(
                f"{count} samples did not decode, more than --max-bad-share {self._max_share:g} of "
                f"{max(images, self._num_samples):,}; replace them (see the log: "
                f"{', '.join(sorted(self._named)[:3])}) and pack the dataset again"
            )


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    blurred, sharp  uint8 [b, 3, crop, crop]  RGB, on the CPU
    positions       b positions in the epoch's canonical order
    """

    epoch: int
    positions: tuple[int, ...]
    blurred: torch.Tensor
    sharp: torch.Tensor


def batches(
    dataset: Dataset, plan: Plan, lanes: range, data: DataRecipe, images_seen: int, threads: int, bad: BadSamples
) -> Generator[Batch, None, None]:
    """An endless stream of a rank's batches, starting at images_seen.

    A sample that does not decode is counted in `bad` and replaced by the previous good one of its lane. Raises
    DamagedError naming shard and key (bytes differ from the index, twice), and InputError if too many are bad.
    """
    loader = _Loader(dataset, dataset.index.splits["train"], plan, data, bad)
    # Two pools: decoders wait for fetchers, and must not occupy all threads.
    with ThreadPoolExecutor(max(4, 2 * threads)) as fetchers, ThreadPoolExecutor(threads) as decoders:
        try:
            pending: deque[tuple[int, list[int], list[Future[Pair]]]] = deque()
            for epoch, positions, slices in updates(dataset, loader.split, plan, lanes, images_seen, fetchers):
                pairs = [
                    decoders.submit(loader.crop, part, epoch, position)
                    for part, position in zip(slices, positions, strict=True)
                ]
                pending.append((epoch, positions, pairs))
                if len(pending) > UPDATES_AHEAD:
                    yield _collate(*pending.popleft())
        finally:
            # The consumer stopped: do not wait for what was read ahead.
            decoders.shutdown(wait=False, cancel_futures=True)
            fetchers.shutdown(wait=False, cancel_futures=True)


def _collate(epoch: int, positions: list[int], pairs: list[Future[Pair]]) -> Batch:
    blurred, sharp = (np.stack(side) for side in zip(*(p.result() for p in pairs), strict=True))
    # Contiguous: otherwise the floats would inherit channels_last, and torch would choose another convolution.
    return Batch(
        epoch, tuple(positions), *(torch.from_numpy(s).permute(0, 3, 1, 2).contiguous() for s in (blurred, sharp))
    )


@dataclass(frozen=True)
class _Loader:
    dataset: Dataset
    split: Split
    plan: Plan
    data: DataRecipe
    bad: BadSamples

    def crop(self, part: Slice, epoch: int, position: int) -> Pair:
        """One pair, cropped to [crop, crop, 3]."""
        try:
            return self._cut(part.shard, part.sample, epoch, position, part.block.result()[part.nth])
        except Undecodable as error:
            self.bad.add(f"{part.shard.name}: {part.sample.key}", error)
            # Other ranks' counts are added at the next report, but this rank alone must not exceed the limit either.
            self.bad.check(self.bad.count, 0)
            return self._replacement(epoch, position)

    def _cut(self, shard: Shard, sample: Sample, epoch: int, position: int, data: memoryview | None = None) -> Pair:
        """The crop of a sample at a position. Raises Undecodable."""
        blurred, sharp = read_files(self.dataset, shard, sample, data)
        (blurred_size, size) = (pictures.open_picture(*file).size for file in (blurred, sharp))
        if blurred_size != size or min(size) < self.data.crop:
            raise Undecodable(
                f"{self.dataset.store.url}/{shard.name}: {sample.key}: sharp {size[0]}x{size[1]} and blurred "
                f"{blurred_size[0]}x{blurred_size[1]} must be of one size, at least --crop {self.data.crop}"
            )
        crop = Crop.draw(*size, self.data, randomness.augmentation(self.plan.seed, epoch, position))
        return crop.apply(pictures.decode(*blurred, crop.box)), crop.apply(pictures.decode(*sharp, crop.box))

    def _replacement(self, epoch: int, position: int) -> Pair:
        """The replacement of a bad sample: the previous good one of its lane, or the next if there is none.

        Determined by the plan alone, so it is the same for any number of ranks and after any restart.
        """
        lane, update = divmod(position, self.plan.updates_per_epoch)
        for other in (*range(update - 1, -1, -1), *range(update + 1, self.plan.updates_per_epoch)):
            nth_shard, nth = self.plan.sample(epoch, self.plan.position(lane, other))
            shard = self.split.shards[nth_shard]
            with contextlib.suppress(Undecodable):  # counted when its turn comes
                return self._cut(shard, self.dataset.samples(shard)[nth], epoch, position)
        raise InputError(f"{self.dataset.store.url}: no sample of a lane decodes; pack the dataset again")


def read_files(dataset: Dataset, shard: Shard, sample: Sample, data: memoryview | None = None) -> tuple[File, File]:
    """The blurred and the sharp PNG with their names, from `data` if the sample's slice was read already.

    If the bytes differ from the index they are read again; raises DamagedError naming shard and key if they still do.
    """
    found = dataset.read(shard, sample.offset, sample.offset + sample.length) if data is None else data
    try:
        blurred, sharp, _ = unpack(found, shard.name, sample)
    except DamagedError:
        blurred, sharp, _ = unpack(dataset.read_again(shard, sample), shard.name, sample)
    place = f"{dataset.store.url}/{shard.name}: {sample.key}"
    return (blurred, f"{place}.blurred.png"), (sharp, f"{place}.sharp.png")


def pairs_of(
    dataset: Dataset, split: Split, indices: Iterable[int], threads: int, bad: BadSamples | None = None
) -> Iterator[Pair]:
    """Decoded full-size pairs of a split, in the order of `indices` (into the packed order), with a few read ahead.

    Pairs that do not decode are counted in `bad` and skipped; without `bad`, Undecodable is raised.
    """
    starts = split.starts

    def read(index: int) -> Pair | None:
        nth = bisect_right(starts, index) - 1
        shard = split.shards[nth]
        sample = dataset.samples(shard)[index - starts[nth]]
        try:
            blurred, sharp = read_files(dataset, shard, sample)
            return pictures.decode(*blurred), pictures.decode(*sharp)
        except Undecodable as error:
            if bad is None:
                raise
            bad.add(f"{shard.name}: {sample.key}", error)
            return None

    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Pair | None]] = deque()
        for index in indices:
            pending.append(pool.submit(read, index))
            if len(pending) > threads and (pair := pending.popleft().result()):
                yield pair
        while pending:
            if pair := pending.popleft().result():
                yield pair


@dataclass(frozen=True)
class Crop:
    """A square crop of both pictures of a pair, with its flip and rotation."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    flip: bool
    turns: int

    @classmethod
    def draw(cls, width: int, height: int, data: DataRecipe, draw: np.random.Generator) -> "Crop":
        """A random crop. Always makes all draws, so that one option does not change the draws of another."""
        top, left = draw.integers(height - data.crop + 1), draw.integers(width - data.crop + 1)
        flip, turns = draw.random() < 0.5, int(draw.integers(4))
        box = (int(left), int(top), int(left) + data.crop, int(top) + data.crop)
        return cls(box, bool(data.flip and flip), turns if data.rotate else 0)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """[crop, crop, 3], flipped and rotated, of the pixels in the box."""
        return np.rot90(pixels[:, ::-1] if self.flip else pixels, self.turns)
