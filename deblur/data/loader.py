"""From shards to batches: stream, decode, crop, collate; in threads, ahead of need.

Threads and not processes: reading waits for the network and PNG decoding releases the interpreter, so nothing is
forked, no shared memory fills up, and one process holds all that a rank knows.

Where the bytes come from is stream.py's matter.
"""

import contextlib
import logging
import threading
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
from deblur.data.pictures import Undecodable
from deblur.data.plan import Plan
from deblur.data.shards import Sample, Shard, Split, unpack
from deblur.data.stream import Slice, updates

UPDATES_AHEAD = 3

Pair = tuple[np.ndarray, np.ndarray]  # (blurred, sharp), uint8 RGB [H, W, 3]
File = tuple[bytes, str]  # content and name
_log = logging.getLogger(__name__)


class BadSamples:
    """Samples whose bytes are right and do not decode: counted, each named once, and limited.

    `max_share` is their share of the samples that were used, or of one epoch while it is the first.
    """

    def __init__(self, max_share: float, num_samples: int) -> None:
        self.count = 0  # on this rank
        self._max_share, self._num_samples = max_share, num_samples
        self._named: set[str] = set()
        self._lock = threading.Lock()

    def add(self, place: str, error: Undecodable) -> None:
        """One more use of a sample that does not decode."""
        with self._lock:
            self.count += 1
            known = place in self._named
            self._named.add(place)
        if not known:
            _log.warning("sample left out: %s", error)

    def check(self, count: int, images: int) -> None:
        """Raises InputError where `count` bad ones, of all ranks, are too many among so many images."""
        allowed = self._max_share * max(images, self._num_samples)
        if count > allowed:
            raise InputError(
                f"{count} samples did not decode, more than the share of {self._max_share:g} (--max-bad-share) of "
                f"{max(images, self._num_samples):,}; the log names them (here {', '.join(sorted(self._named)[:3])}); "
                "mend them and pack the dataset again"
            )


@dataclass(frozen=True)
class Batch:
    """A rank's share of one update.

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
    """The endless stream of a rank's batches from images_seen on.

    A sample that does not decode is counted in `bad`, and its place taken by the good one before it in its lane.
    Raises DamagedError (bytes unlike the index, twice), naming shard and key, and InputError when too many are bad.
    """
    loader = _Loader(dataset, dataset.index.splits["train"], plan, data, bad)
    # Fetching and decoding have pools of their own: a decoder waits for its bytes, and must not hold the last thread.
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
            # The consumer left: what was read ahead is not worth waiting for.
            decoders.shutdown(wait=False, cancel_futures=True)
            fetchers.shutdown(wait=False, cancel_futures=True)


def _collate(epoch: int, positions: list[int], pairs: list[Future[Pair]]) -> Batch:
    blurred, sharp = (np.stack(side) for side in zip(*(p.result() for p in pairs), strict=True))
    # Contiguous, for the order of bytes would stay with the floats and choose another convolution.
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
        """One pair, cut to [crop, crop, 3]."""
        try:
            return self._cut(part.shard, part.sample, epoch, position, part.block.result()[part.nth])
        except Undecodable as error:
            self.bad.add(f"{part.shard.name}: {part.sample.key}", error)
            # What other ranks count is known at the next report, but more than is allowed to all is too much here.
            self.bad.check(self.bad.count, 0)
            return self._stand_in(epoch, position)

    def _cut(self, shard: Shard, sample: Sample, epoch: int, position: int, data: memoryview | None = None) -> Pair:
        """A sample's crop at a position. Raises Undecodable where there is none."""
        blurred, sharp = read_files(self.dataset, shard, sample, data)
        (blurred_size, size) = (pictures.open_picture(*file).size for file in (blurred, sharp))
        if blurred_size != size or min(size) < self.data.crop:
            raise Undecodable(
                f"{self.dataset.store.url}/{shard.name}: {sample.key}: {size[0]}x{size[1]} (blurred "
                f"{blurred_size[0]}x{blurred_size[1]}) does not hold a crop of {self.data.crop}"
            )
        crop = Crop.draw(*size, self.data, randomness.augmentation(self.plan.seed, epoch, position))
        return crop.turned(pictures.decode(*blurred, crop.box)), crop.turned(pictures.decode(*sharp, crop.box))

    def _stand_in(self, epoch: int, position: int) -> Pair:
        """What takes a bad sample's place: the good one before it in its lane, or behind it where none is before.

        Found by the plan alone, so it is the same for any number of ranks and after any restart.
        """
        lane, update = divmod(position, self.plan.updates_per_epoch)
        for other in (*range(update - 1, -1, -1), *range(update + 1, self.plan.updates_per_epoch)):
            shard, nth = self.plan.sample(epoch, self.plan.position(lane, other))
            with contextlib.suppress(Undecodable):  # counted on its own turn
                return self._cut(self.split.shards[shard], self.split.shards[shard].samples[nth], epoch, position)
        raise InputError(f"{self.dataset.store.url}: no sample of a whole lane decodes; pack the dataset again")


def read_files(dataset: Dataset, shard: Shard, sample: Sample, data: memoryview | None = None) -> tuple[File, File]:
    """The blurred and the sharp PNG, from the sample's slice where that was read already, each with its name.

    Bytes unlike the index are read once more. Raises DamagedError (unlike the index again), naming shard and key.
    """
    if data is None:
        data = dataset.read(shard, sample.offset, sample.offset + sample.length)
    try:
        blurred, sharp, _ = unpack(data, shard.name, sample)
    except DamagedError:
        blurred, sharp, _ = unpack(dataset.read_again(shard, sample), shard.name, sample)
    place = f"{dataset.store.url}/{shard.name}: {sample.key}"
    return (blurred, f"{place}.blurred.png"), (sharp, f"{place}.sharp.png")


def pairs_of(
    dataset: Dataset, split: Split, indices: Iterable[int], threads: int, bad: BadSamples | None = None
) -> Iterator[Pair]:
    """Whole decoded pairs of a split, in the order of `indices` (places in packed order), a few read ahead.

    Those that do not decode are counted in `bad` and left out, or raised where there is none.
    """
    samples = [(shard, sample) for shard in split.shards for sample in shard.samples]

    def read(index: int) -> Pair | None:
        shard, sample = samples[index]
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
    """Where a square is cut from both pictures of a pair, and how it is turned."""

    box: tuple[int, int, int, int]  # left, top, right, bottom
    flip: bool
    turns: int

    @classmethod
    def draw(cls, width: int, height: int, data: DataRecipe, draw: np.random.Generator) -> "Crop":
        """A random one. All draws are made whatever is switched on: one option does not move the draws of another."""
        top, left = draw.integers(height - data.crop + 1), draw.integers(width - data.crop + 1)
        flip, turns = draw.random() < 0.5, int(draw.integers(4))
        box = (int(left), int(top), int(left) + data.crop, int(top) + data.crop)
        return cls(box, bool(data.flip and flip), turns if data.rotate else 0)

    def turned(self, pixels: np.ndarray) -> np.ndarray:
        """Those of the box, [crop, crop, 3], flipped and rotated."""
        return np.rot90(pixels[:, ::-1] if self.flip else pixels, self.turns)
