"""From shards to the bytes of samples: ranged GETs per lane, one block ahead of need.

A single GET for a whole shard would be read only as fast as the lane is consumed, and servers close idle connections.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from deblur.data.dataset import Dataset
from deblur.data.index import Sample, Shard, Split
from deblur.data.plan import Plan

BLOCK_BYTES = 8 << 20  # of one GET: large enough to hide its latency; every lane holds two blocks in memory
_Fetch = Callable[[Shard, list[Sample]], Future[list[memoryview]]]


@dataclass(frozen=True)
class Slice:
    """A sample whose bytes will be the nth of a block that is being fetched."""

    shard: Shard
    sample: Sample
    block: Future[list[memoryview]]
    nth: int


def updates(
    dataset: Dataset, split: Split, plan: Plan, lanes: range, images_seen: int, fetchers: ThreadPoolExecutor
) -> Iterator[tuple[int, list[int], list[Slice]]]:
    """(epoch, positions, one slice per lane) of every update from images_seen on, endlessly."""
    epoch, first = plan.locate(images_seen)

    def fetch(shard: Shard, samples: list[Sample]) -> Future[list[memoryview]]:
        return fetchers.submit(_fetch, dataset, shard, samples)

    while True:
        slices = [_lane(dataset, split, plan, epoch, lane, first, fetch) for lane in lanes]
        for update in range(first, plan.updates_per_epoch):
            yield epoch, [plan.position(lane, update) for lane in lanes], [next(lane) for lane in slices]
        epoch, first = epoch + 1, 0


def _lane(
    dataset: Dataset, split: Split, plan: Plan, epoch: int, lane: int, first: int, fetch: _Fetch
) -> Iterator[Slice]:
    """The samples of a lane in order. A block is requested once the first sample of the previous one was taken."""
    positions = (plan.position(lane, update) for update in range(first, plan.updates_per_epoch))
    located = ((split.shards[s], i) for s, i in (plan.sample(epoch, p) for p in positions))
    requested = (
        (shard, samples, fetch(shard, samples))
        for shard, samples in _blocks((shard, dataset.samples(shard)[i]) for shard, i in located)
    )
    following = next(requested, None)
    while following:
        shard, samples, block = following
        for nth, sample in enumerate(samples):
            yield Slice(shard, sample, block, nth)
            if nth == 0:  # not sooner: other lanes' first blocks have priority over this lane's second
                following = next(requested, None)


def _fetch(dataset: Dataset, shard: Shard, samples: list[Sample]) -> list[memoryview]:
    """The slices of adjacent samples, from one ranged read."""
    start, end = samples[0].offset, samples[-1].offset + samples[-1].length
    data = memoryview(dataset.read(shard, start, end))
    return [data[s.offset - start : s.offset - start + s.length] for s in samples]


def _blocks(located: Iterator[tuple[Shard, Sample]]) -> Iterator[tuple[Shard, list[Sample]]]:
    """Runs of adjacent samples of one shard, of at most BLOCK_BYTES in total, or of one larger sample."""
    block: tuple[Shard, list[Sample]] | None = None
    for shard, sample in located:
        if block and _extends(block, shard, sample):
            block[1].append(sample)
            continue
        if block:
            yield block
        block = shard, [sample]
    if block:
        yield block


def _extends(block: tuple[Shard, list[Sample]], shard: Shard, sample: Sample) -> bool:
    first, last = block[1][0], block[1][-1]
    adjacent = shard is block[0] and sample.offset == last.offset + last.length
    return adjacent and sample.offset + sample.length - first.offset <= BLOCK_BYTES
