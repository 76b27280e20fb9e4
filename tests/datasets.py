"""Small datasets of smooth random pictures, written by the project's own shard writer."""

from collections.abc import Iterator

import numpy as np
import scipy.ndimage

from cluster.storage import Store
from deblur.data import pictures
from deblur.data.dataset import Dataset
from deblur.data.index import Index, read_index, write_index
from deblur.data.shards import PackedSample, write_split


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3], the same for a seed."""
    noise = np.random.default_rng(seed).random((height, width, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (1.5, 1.5, 0))
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def samples(prefix: str, count: int, height: int, width: int) -> Iterator[PackedSample]:
    """Sharp pictures, each with itself blurred along its rows."""
    for nth in range(count):
        sharp = picture(nth, height, width)
        blurred = scipy.ndimage.uniform_filter(sharp, (1, 5, 1))
        key, pngs = f"{prefix}-{nth:03d}", [pictures.encode_png(side) for side in (blurred, sharp)]
        yield PackedSample(key=key, blurred_png=pngs[0], sharp_png=pngs[1], meta={}, size=(height, width))


def write_dataset(
    store: Store, *, train: int, validation: int = 3, size: tuple[int, int] = (48, 56), shard_bytes: int = 60_000
) -> Dataset:
    """A dataset with several train shards and one validation shard."""
    splits = {
        "train": write_split(store, "train", samples("t", train, *size), shard_bytes),
        "validation": write_split(store, "validation", samples("v", validation, *size), 1 << 30),
    }
    write_index(store, Index(made={"by": "tests"}, splits=splits))
    return Dataset(store, read_index(store))
