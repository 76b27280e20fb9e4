"""The sampling plan: each position of an epoch at most once, and the same batches for any number of ranks.

An epoch's canonical order permutes the shards by (seed, epoch), keeps the packed order inside each shard, and is
rotated to begin at a sample drawn by (seed, epoch): so even with one shard every epoch has other batches, and skips
other samples. With N samples and batch size B there are S = N // B updates. Lane j (0 <= j < B) is the range
[j S, (j + 1) S) of that order; update t takes the t-th sample of every lane; the last N - S B samples are skipped in
this epoch. Rank r of W takes lanes [r B // W, (r + 1) B // W).

Because lanes belong to the batch and not to ranks, the whole state of the data is one number, images_seen.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from cluster.errors import InputError
from deblur.config import randomness


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of a split. `shard_sizes` are samples per shard. Raises InputError if an epoch has no full batch."""

    shard_sizes: tuple[int, ...]
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < self.batch_size:
            raise InputError(
                f"batch size {self.batch_size} is more than the {self.num_samples} samples of the training split; "
                f"choose --batch-size {self.num_samples} or less, or pack more pairs"
            )

    @property
    def num_samples(self) -> int:
        return sum(self.shard_sizes)

    @property
    def updates_per_epoch(self) -> int:
        return self.num_samples // self.batch_size

    def locate(self, images_seen: int) -> tuple[int, int]:
        """(epoch, update in it) after images_seen. Raises ValueError if that is not a multiple of the batch size."""
        updates, rest = divmod(images_seen, self.batch_size)
        if rest:
            raise ValueError(f"{images_seen} images are not a multiple of the batch size {self.batch_size}")
        return divmod(updates, self.updates_per_epoch)

    def position(self, lane: int, update: int) -> int:
        """Position in the epoch's canonical order of a lane's sample in an update."""
        return lane * self.updates_per_epoch + update

    def sample(self, epoch: int, position: int) -> tuple[int, int]:
        """(shard, index in the shard) of a position of an epoch."""
        order, starts, first = _canonical_order(self.shard_sizes, self.seed, epoch)
        place = (position + first) % self.num_samples
        nth = bisect_right(starts, place) - 1
        return order[nth], place - starts[nth]


def lanes_of(rank: int, num_ranks: int, batch_size: int) -> range:
    """The lanes of a rank; numbers of lanes differ by at most one. Raises InputError if a rank would get none."""
    if num_ranks > batch_size:
        raise InputError(
            f"{num_ranks} ranks cannot share batches of {batch_size}; choose --batch-size {num_ranks} or more, "
            "or fewer nodes"
        )
    return range(rank * batch_size // num_ranks, (rank + 1) * batch_size // num_ranks)


@lru_cache(maxsize=4)
def _canonical_order(shard_sizes: Sequence[int], seed: int, epoch: int) -> tuple[list[int], list[int], int]:
    """The epoch's shards in order, the offset at which each begins, and the offset of position 0."""
    permuted, first = randomness.epoch_order(seed, epoch, shard_sizes)
    order = [shard for shard in permuted if shard_sizes[shard]]
    starts = list(accumulate((shard_sizes[shard] for shard in order[:-1]), initial=0))
    return order, starts, first
