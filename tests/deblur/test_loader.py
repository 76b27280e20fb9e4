"""From shards to batches: aligned crops, the same for any number of ranks and any start, and damage named."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DamagedError, InputError
from cluster.storage import Store, join, open_store
from deblur.data.loader import Batch, Dataset, augment, batches, pairs_of
from deblur.data.plan import Plan, lanes_of
from deblur.recipe import DataRecipe
from tests.datasets import picture, samples, write_dataset

DATA = DataRecipe(batch_size=4, crop=24, rotate=True)


def plan_of(dataset: Dataset) -> Plan:
    sizes = tuple(len(shard.samples) for shard in dataset.index.splits["train"].shards)
    return Plan(shard_sizes=sizes, batch_size=DATA.batch_size, seed=5)


def read(dataset: Dataset, count: int, *, rank: int = 0, num_ranks: int = 1, images_seen: int = 0) -> list[Batch]:
    stream = batches(dataset, plan_of(dataset), lanes_of(rank, num_ranks, DATA.batch_size), DATA, images_seen, 2)
    found = list(islice(stream, count))
    stream.close()
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = write_dataset(open_store(tmp_path_factory.mktemp("data")), train=23)
    assert len(dataset.index.splits["train"].shards) > 2
    return dataset


def test_every_crop_is_cut_from_the_sample_of_its_position(dataset: Dataset) -> None:
    """The crop, in one of its eight orientations, is found in the picture that the plan names."""
    pictures = {sample.key: picture(nth, 48, 56) for nth, sample in enumerate(samples("t", 23, 48, 56))}
    plan, shards = plan_of(dataset), dataset.index.splits["train"].shards
    for batch in read(dataset, 5):
        for position, crop in zip(batch.positions, batch.sharp, strict=True):
            shard, nth = plan.sample(batch.epoch, position)
            whole = pictures[shards[shard].samples[nth].key]
            windows = np.lib.stride_tricks.sliding_window_view(whole, (24, 24), axis=(0, 1))  # [25, 33, 3, 24, 24]
            turned = [
                np.rot90(side, k, axes=(1, 2)) for side in (crop.numpy(), crop.numpy()[:, :, ::-1]) for k in range(4)
            ]
            assert any((windows == t).all(axis=(2, 3, 4)).any() for t in turned)


def test_batches_do_not_depend_on_the_number_of_ranks(dataset: Dataset) -> None:
    alone = read(dataset, 12)
    for num_ranks in (2, 3, 4):
        shares = [read(dataset, 12, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        for whole, *parts in zip(alone, *shares, strict=True):
            assert torch.equal(whole.sharp, torch.cat([part.sharp for part in parts]))
            assert torch.equal(whole.blurred, torch.cat([part.blurred for part in parts]))
            assert whole.positions == sum((part.positions for part in parts), ())


def test_to_resume_is_to_seek(dataset: Dataset) -> None:
    straight = read(dataset, 14)
    for done in (1, 4, 5, 9):
        resumed = read(dataset, 14 - done, images_seen=done * DATA.batch_size)
        for a, b in zip(straight[done:], resumed, strict=True):
            assert (a.epoch, a.positions) == (b.epoch, b.positions)
            assert torch.equal(a.blurred, b.blurred)


def test_batches_are_bytes_in_planes(dataset: Dataset) -> None:
    (batch,) = read(dataset, 1)
    assert batch.sharp.shape == (4, 3, 24, 24)
    assert batch.sharp.dtype is torch.uint8
    assert batch.sharp.is_contiguous()


@given(
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    flip=st.booleans(),
    rotate=st.booleans(),
    seed=st.integers(0, 99),
)
def test_both_pictures_of_a_pair_are_cut_alike(height: int, width: int, flip: bool, rotate: bool, seed: int) -> None:
    """The sharp picture is the blurred one plus 1, and stays so."""
    blurred = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    data = DataRecipe(crop=16, flip=flip, rotate=rotate)
    cut, cut_sharp = augment(blurred, blurred + 1, data, np.random.default_rng(seed))
    assert cut.shape == (16, 16, 3)
    assert np.array_equal(cut + 1, cut_sharp)


def test_all_places_and_orientations_are_drawn() -> None:
    marked = np.arange(17 * 17).reshape(17, 17, 1).repeat(3, axis=2).astype(np.uint16)
    draw, data = np.random.default_rng(0), DataRecipe(crop=16, flip=True, rotate=True)
    corners = {tuple(augment(marked, marked, data, draw)[0][[0, 0, -1, -1], [0, -1, 0, -1], 0]) for _ in range(1000)}
    assert len(corners) == 4 * 8


def test_options_do_not_move_each_others_draws() -> None:
    image = picture(0, 40, 40)
    plain = augment(image, image, DataRecipe(crop=16, flip=False, rotate=False), np.random.default_rng(3))[0]
    turned = augment(image, image, DataRecipe(crop=16, flip=False, rotate=True), np.random.default_rng(3))[0]
    assert any(np.array_equal(np.rot90(plain, k), turned) for k in range(4))


def test_a_bucket_gives_the_batches_of_a_folder(dataset: Dataset, bucket: str) -> None:
    remote = write_dataset(open_store(join(bucket, "data")), train=23)
    for a, b in zip(read(dataset, 7), read(remote, 7), strict=True):
        assert torch.equal(a.blurred, b.blurred)


class Flaky:
    """A store whose first answers have one wrong byte."""

    def __init__(self, store: Store, wrong: int) -> None:
        self._store, self.wrong, self.url = store, wrong, store.url

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        data = bytearray(self._store.get(key, start, end))
        if self.wrong:
            self.wrong -= 1
            data[len(data) // 2] ^= 1
        return bytes(data)


def test_bytes_unlike_the_index_are_read_once_more_and_then_an_error_with_shard_and_key(dataset: Dataset) -> None:
    split = dataset.index.splits["validation"]
    good = list(pairs_of(dataset.store, split, range(1), 1))
    again = list(pairs_of(Flaky(dataset.store, wrong=1), split, range(1), 1))
    assert np.array_equal(good[0][0], again[0][0])
    with pytest.raises(DamagedError, match=r"validation/000000\.tar: v-000.*crc32"):
        list(pairs_of(Flaky(dataset.store, wrong=2), split, range(1), 1))


def test_a_picture_that_does_not_decode_is_named_with_shard_and_key(tmp_path: Path) -> None:
    bad = [replace(sample, sharp_png=sample.sharp_png[:500]) for sample in samples("t", 4, 48, 56)]
    from deblur.data.shards import Index, write_split

    store = open_store(tmp_path)
    split = write_split(store, "train", bad, 1 << 30)
    broken = Dataset(store, Index(made={}, splits={"train": split}))
    with pytest.raises(InputError, match=r"train/000000\.tar: t-00\d\.sharp\.png: does not decode"):
        read(broken, 1)


def test_what_was_read_ahead_is_dropped_when_the_consumer_leaves(dataset: Dataset) -> None:
    stream = batches(dataset, plan_of(dataset), range(4), DATA, 0, 2)
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
