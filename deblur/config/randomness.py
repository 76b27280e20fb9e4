"""Seeds of all random draws. Nothing else in a run is random, so there is no generator state to save.

A draw depends on its purpose and its position in the data, never on the rank or process that makes it (except
dropout: its masks are drawn on each rank's device).
"""

from collections.abc import Sequence

import numpy as np

# A different number per purpose makes their streams independent.
_WEIGHTS, _AUGMENTATION, _MIX, _DROPOUT, _ORDER, _, _SAMPLER = range(7)  # the numbers must stay as they are


def _stream(purpose: int, seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed, *key])


def weights_seed(seed: int) -> int:
    """Seed of torch's global generator when networks are built."""
    return int(_stream(_WEIGHTS, seed).integers(2**63))


def augmentation(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Draws the crop, flip and rotation of the sample at a position of an epoch."""
    return _stream(_AUGMENTATION, seed, epoch, position)


def mix(seed: int, epoch: int, position: int, critic_updates: int) -> np.ndarray:
    """float32 [critic_updates] in [0, 1): interpolation weights of one image, for the gradient penalty of each step."""
    return _stream(_MIX, seed, epoch, position).random(critic_updates, dtype=np.float32)


def dropout_seed(seed: int, images_seen: int, rank: int) -> int:
    """Seed of torch's global generators for one update of one rank."""
    return int(_stream(_DROPOUT, seed, images_seen, rank).integers(2**63))


def epoch_order(seed: int, epoch: int, shard_sizes: Sequence[int]) -> tuple[list[int], int]:
    """(a permutation of the shards, the position in that order at which the epoch begins)."""
    stream = _stream(_ORDER, seed, epoch)
    return stream.permutation(len(shard_sizes)).tolist(), int(stream.integers(sum(shard_sizes)))


def sampler_seed(seed: int, number: int) -> int:
    """Seed of the sampler that draws one trial of a search."""
    return int(_stream(_SAMPLER, seed, number).integers(2**32))
