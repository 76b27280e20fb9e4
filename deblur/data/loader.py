"""From shards to batches: stream, decode, crop, collate; in threads, ahead of need.

Threads and not processes: reading waits for the network and PNG decoding releases the interpreter, so nothing is
forked, no shared memory fills up, and one process holds all that a rank knows.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from cluster.errors import DamagedError, InputError
from cluster.storage import Store
from deblur import randomness
from deblur.data import pictures
from deblur.data.plan import Plan
from deblur.data.shards import Index, Sample, Shard, Split, unpack
from deblur.recipe import DataRecipe

BLOCK_BYTES = 8 << 20  # one ranged GET: long enough to hide its latency, short enough to be held for every lane
UPDATES_AHEAD = 3

Pair = tuple[np.ndarray, np.ndarray]  # (blurred, sharp), uint8 RGB [H, W, 3]


@dataclass(frozen=True)
class Dataset:
    """The root of a dataset and what its index says."""

    store: Store
    index: Index


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
    dataset: Dataset, plan: Plan, lanes: range, data: DataRecipe, images_seen: int, threads: int
) -> Generator[Batch, None, None]:
    """The endless stream of a rank's batches from images_seen on.

    Raises DamagedError (bytes unlike the index, twice) and InputError (a picture that does not decode), naming shard
    and key.
    """
    loader = _Loader(dataset.store, dataset.index.splits["train"], plan, data)
    # Fetching and decoding have pools of their own: a decoder waits for its bytes, and must not hold the last thread.
    with ThreadPoolExecutor(max(4, 2 * threads)) as fetchers, ThreadPoolExecutor(threads) as decoders:
        try:
            pending: deque[tuple[int, list[int], list[Future[Pair]]]] = deque()
            for epoch, positions, slices in loader.updates(lanes, images_seen, fetchers):
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
class _Slice:
    """Where a sample's bytes will be: the nth of a block that is being fetched."""

    shard: Shard
    sample: Sample
    block: Future[list[bytes]]
    nth: int


@dataclass(frozen=True)
class _Loader:
    store: Store
    split: Split
    plan: Plan
    data: DataRecipe

    def updates(
        self, lanes: range, images_seen: int, fetchers: ThreadPoolExecutor
    ) -> Iterator[tuple[int, list[int], list[_Slice]]]:
        """(epoch, positions, one slice per lane) of every update, without end."""
        epoch, first = self.plan.locate(images_seen)
        while True:
            slices = [self._lane(epoch, lane, first, fetchers) for lane in lanes]
            for update in range(first, self.plan.updates_per_epoch):
                yield epoch, [self.plan.position(lane, update) for lane in lanes], [next(lane) for lane in slices]
            epoch, first = epoch + 1, 0

    def _lane(self, epoch: int, lane: int, first: int, fetchers: ThreadPoolExecutor) -> Iterator[_Slice]:
        """The samples of a lane in order; each block is asked for when its first sample is."""
        positions = (self.plan.position(lane, update) for update in range(first, self.plan.updates_per_epoch))
        located = ((self.split.shards[s], i) for s, i in (self.plan.sample(epoch, p) for p in positions))
        for shard, samples in _blocks((shard, shard.samples[i]) for shard, i in located):
            block = fetchers.submit(self._fetch, shard, samples)
            for nth, sample in enumerate(samples):
                yield _Slice(shard, sample, block, nth)

    def _fetch(self, shard: Shard, samples: list[Sample]) -> list[bytes]:
        """The slices of neighbouring samples, by one ranged read."""
        start, end = samples[0].offset, samples[-1].offset + samples[-1].length
        data = memoryview(self.store.get(shard.name, start, end))
        return [bytes(data[s.offset - start : s.offset - start + s.length]) for s in samples]

    def crop(self, part: _Slice, epoch: int, position: int) -> Pair:
        """One pair, decoded and cut to [crop, crop, 3]."""
        shard, sample = part.shard, part.sample
        blurred, sharp = read_pair(self.store, shard, sample, part.block.result()[part.nth])
        place = f"{self.store.url}/{shard.name}: {sample.key}"
        if blurred.shape != sharp.shape or min(sharp.shape[:2]) < self.data.crop:
            raise InputError(
                f"{place}: {sharp.shape[1]}x{sharp.shape[0]} (blurred {blurred.shape[1]}x{blurred.shape[0]}) does not "
                f"hold a crop of {self.data.crop}; choose a smaller --crop or pack larger pictures"
            )
        draw = randomness.augmentation(self.plan.seed, epoch, position)
        return augment(blurred, sharp, self.data, draw)


def read_pair(store: Store, shard: Shard, sample: Sample, data: bytes | None = None) -> Pair:
    """A decoded sample, from its slice where that was read already; bytes unlike the index are read once more.

    Raises DamagedError (unlike the index again) and InputError (does not decode), naming shard and key.
    """
    try:
        blurred, sharp, _ = unpack(_slice(store, shard, sample) if data is None else data, shard.name, sample)
    except DamagedError:
        blurred, sharp, _ = unpack(_slice(store, shard, sample), shard.name, sample)
    place = f"{store.url}/{shard.name}: {sample.key}"
    return pictures.decode(blurred, f"{place}.blurred.png"), pictures.decode(sharp, f"{place}.sharp.png")


def pairs_of(store: Store, split: Split, indices: Iterable[int], threads: int) -> Iterator[Pair]:
    """Whole decoded pairs of a split, in the order of `indices` (places in packed order), a few read ahead."""
    samples = [(shard, sample) for shard in split.shards for sample in shard.samples]
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Pair]] = deque()
        for index in indices:
            pending.append(pool.submit(read_pair, store, *samples[index]))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _slice(store: Store, shard: Shard, sample: Sample) -> bytes:
    return store.get(shard.name, sample.offset, sample.offset + sample.length)


def augment(blurred: np.ndarray, sharp: np.ndarray, data: DataRecipe, draw: np.random.Generator) -> Pair:
    """The same random crop, flip and rotation of both pictures: two uint8 [crop, crop, 3]."""
    height, width = sharp.shape[:2]
    top, left = draw.integers(height - data.crop + 1), draw.integers(width - data.crop + 1)
    # All draws are made whatever is switched on, so that one option does not move the draws of another.
    flip, turns = draw.random() < 0.5, int(draw.integers(4))

    def cut(picture: np.ndarray) -> np.ndarray:
        picture = picture[top : top + data.crop, left : left + data.crop]
        picture = picture[:, ::-1] if data.flip and flip else picture
        return np.rot90(picture, turns) if data.rotate else picture

    return cut(blurred), cut(sharp)


def _blocks(located: Iterator[tuple[Shard, Sample]]) -> Iterator[tuple[Shard, list[Sample]]]:
    """Runs of samples that are neighbours in one shard and have at most BLOCK_BYTES together (or are one sample)."""
    shard, samples, size = None, [], 0
    for next_shard, sample in located:
        neighbour = samples and next_shard is shard and sample.offset == samples[-1].offset + samples[-1].length
        if not neighbour or size + sample.length > BLOCK_BYTES:
            if samples:
                yield shard, samples
            shard, samples, size = next_shard, [], 0
        samples.append(sample)
        size += sample.length
    if samples:
        yield shard, samples
