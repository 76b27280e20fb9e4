"""From shards to the bytes of samples: each lane is read by one ranged GET after another, ahead of need.

A single GET for a whole shard would be read as slowly as the lane is consumed, and servers cut connections that idle.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from deblur.data.dataset import Dataset
from deblur.data.plan import Plan
from deblur.data.shards import Sample, Shard, Split

BLOCK_BYTES = 8 << 20  # one ranged GET: long enough to hide its latency, short enough to be held twice for every lane


@dataclass(frozen=True)
class Slice:
    """Where a sample's bytes will be: the nth of a block that is being fetched."""

    shard: Shard
    sample: Sample
    block: Future[list[memoryview]]
    nth: int


def updates(
    dataset: Dataset, split: Split, plan: Plan, lanes: range, images_seen: int, fetchers: ThreadPoolExecutor
) -> Iterator[tuple[int, list[int], list[Slice]]]:
    """(epoch, positions, one slice per lane) of every update from images_seen on, without end."""
    epoch, first = plan.locate(images_seen)
    while True:
        slices = [_lane(dataset, split, plan, epoch, lane, first, fetchers) for lane in lanes]
        for update in range(first, plan.updates_per_epoch):
            yield epoch, [plan.position(lane, update) for lane in lanes], [next(lane) for lane in slices]
        epoch, first = epoch + 1, 0


def _lane(
    dataset: Dataset, split: Split, plan: Plan, epoch: int, lane: int, first: int, fetchers: ThreadPoolExecutor
) -> Iterator[Slice]:
    """The samples of a lane in order. A block is asked for when the one before it is begun, or it is the first."""
    positions = (plan.position(lane, update) for update in range(first, plan.updates_per_epoch))
    located = ((split.shards[s], i) for s, i in (plan.sample(epoch, p) for p in positions))
    asked = (
        (shard, samples, fetchers.submit(_fetch, dataset, shard, samples))
        for shard, samples in _blocks((shard, shard.samples[i]) for shard, i in located)
    )
    following = next(asked, None)
    while following:
        shard, samples, block = following
        for nth, sample in enumerate(samples):
            yield Slice(shard, sample, block, nth)
            if nth == 0:  # not sooner: the first blocks of other lanes go before the second of this one
                following = next(asked, None)


def _fetch(dataset: Dataset, shard: Shard, samples: list[Sample]) -> list[memoryview]:
    """The slices of neighbouring samples, by one ranged read."""
    start, end = samples[0].offset, samples[-1].offset + samples[-1].length
    data = memoryview(dataset.read(shard, start, end))
    return [data[s.offset - start : s.offset - start + s.length] for s in samples]


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
