"""From shards to batches: aligned crops, the same for any number of ranks and after any resume; damage is named."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DamagedError, InputError, NotFound
from cluster.storage import Store, Traffic, join, open_store
from cluster.storage.cache import Cache
from deblur.config import randomness
from deblur.config.recipes import DataRecipe
from deblur.data import pictures
from deblur.data.dataset import Dataset
from deblur.data.index import Index
from deblur.data.loader import BadSamples, Batch, Crop, batches, pairs_of
from deblur.data.plan import Plan, lanes_of
from deblur.data.shards import write_split
from tests.datasets import picture, samples, write_dataset

DATA = DataRecipe(batch_size=4, crop=24, rotate=True)


def plan_of(dataset: Dataset) -> Plan:
    sizes = tuple(shard.num_samples for shard in dataset.index.splits["train"].shards)
    return Plan(shard_sizes=sizes, batch_size=DATA.batch_size, seed=5)


def augment(whole: np.ndarray, data: DataRecipe, draw: np.random.Generator) -> np.ndarray:
    """The crop of a fully decoded picture."""
    crop = Crop.draw(whole.shape[1], whole.shape[0], data, draw)
    left, top, right, bottom = crop.box
    return crop.apply(whole[top:bottom, left:right])


def read(
    dataset: Dataset,
    count: int,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    images_seen: int = 0,
    bad: BadSamples | None = None,
) -> list[Batch]:
    lanes = lanes_of(rank, num_ranks, DATA.batch_size)
    stream = batches(dataset, plan_of(dataset), lanes, DATA, images_seen, 2, bad or BadSamples(0, 1))
    found = list(islice(stream, count))
    stream.close()
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = write_dataset(open_store(tmp_path_factory.mktemp("data")), train=23)
    assert len(dataset.index.splits["train"].shards) > 2
    return dataset


def test_every_crop_is_cut_from_the_sample_of_its_position(dataset: Dataset) -> None:
    """The crop, in one of eight orientations, is in the picture that the plan names."""
    pictures = {sample.key: picture(nth, 48, 56) for nth, sample in enumerate(samples("t", 23, 48, 56))}
    plan, shards = plan_of(dataset), dataset.index.splits["train"].shards
    for batch in read(dataset, 5):
        for position, crop in zip(batch.positions, batch.sharp, strict=True):
            shard, nth = plan.sample(batch.epoch, position)
            whole = pictures[dataset.samples(shards[shard])[nth].key]
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


def test_resuming_equals_seeking(dataset: Dataset) -> None:
    straight = read(dataset, 14)
    for done in (1, 4, 5, 9):
        resumed = read(dataset, 14 - done, images_seen=done * DATA.batch_size)
        for a, b in zip(straight[done:], resumed, strict=True):
            assert (a.epoch, a.positions) == (b.epoch, b.positions)
            assert torch.equal(a.blurred, b.blurred)


def test_batches_are_contiguous_uint8(dataset: Dataset) -> None:
    (batch,) = read(dataset, 1)
    assert batch.sharp.shape == (4, 3, 24, 24)
    assert batch.sharp.dtype is torch.uint8
    assert batch.sharp.is_contiguous()


def test_both_pictures_of_a_pair_get_the_same_crop(tmp_path: Path) -> None:
    """The sharp picture is the negative of the blurred one."""
    made = list(samples("t", 23, 48, 56))
    for nth, sample in enumerate(made):
        blurred = pictures.decode(sample.blurred_png, "")
        made[nth] = replace(sample, sharp_png=pictures.encode_png(255 - blurred))
    store = open_store(tmp_path)
    dataset = Dataset(store, Index(made={}, splits={"train": write_split(store, "train", made, 60_000)}))
    for batch in read(dataset, 15):
        assert torch.equal(255 - batch.sharp, batch.blurred)


def test_all_positions_and_orientations_are_drawn() -> None:
    marked = np.arange(17 * 17).reshape(17, 17, 1).repeat(3, axis=2).astype(np.uint16)
    draw, data = np.random.default_rng(0), DataRecipe(crop=16, flip=True, rotate=True)
    corners = {tuple(augment(marked, data, draw)[[0, 0, -1, -1], [0, -1, 0, -1], 0]) for _ in range(1000)}
    assert len(corners) == 4 * 8


def test_options_do_not_change_each_others_draws() -> None:
    image = picture(0, 40, 40)
    plain = augment(image, DataRecipe(crop=16, flip=False, rotate=False), np.random.default_rng(3))
    turned = augment(image, DataRecipe(crop=16, flip=False, rotate=True), np.random.default_rng(3))
    assert any(np.array_equal(np.rot90(plain, k), turned) for k in range(4))


def test_a_bucket_gives_the_batches_of_a_folder(dataset: Dataset, bucket: str) -> None:
    remote = write_dataset(open_store(join(bucket, "data")), train=23)
    for a, b in zip(read(dataset, 7), read(remote, 7), strict=True):
        assert torch.equal(a.blurred, b.blurred)


class Flaky:
    """A store whose first reads of keys with this ending have one wrong byte."""

    def __init__(self, store: Store, wrong: int, ending: str = ".tar") -> None:
        self._store, self.wrong, self.url, self.traffic = store, wrong, store.url, Traffic()
        self._ending = ending

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        data = bytearray(self._store.get(key, start, end))
        self.traffic.add(read_bytes=len(data))
        if self.wrong and key.endswith(self._ending):
            self.wrong -= 1
            data[len(data) // 2] ^= 1
        return bytes(data)


def test_wrong_bytes_are_read_again_and_then_an_error_with_shard_and_key(dataset: Dataset) -> None:
    split = dataset.index.splits["validation"]
    good = list(pairs_of(dataset, split, range(1), 1))
    again = list(pairs_of(replace(dataset, store=Flaky(dataset.store, wrong=1)), split, range(1), 1))
    assert np.array_equal(good[0][0], again[0][0])
    with pytest.raises(DamagedError, match=r"validation/000000\.tar: v-000.*crc32"):
        list(pairs_of(replace(dataset, store=Flaky(dataset.store, wrong=2)), split, range(1), 1))


def test_a_wrong_table_is_read_again_and_then_an_error(dataset: Dataset) -> None:
    (shard,) = dataset.index.splits["validation"].shards
    good = dataset.samples(shard)
    assert replace(dataset, store=Flaky(dataset.store, 1, ".npz")).samples(shard) == good
    with pytest.raises(DamagedError, match=r"validation/000000\.npz: differs from the index"):
        replace(dataset, store=Flaky(dataset.store, 2, ".npz")).samples(shard)


@pytest.mark.parametrize("content", [b"", b"not a tar " * 9999], ids=["cut", "replaced"])
def test_a_truncated_or_replaced_shard_is_an_error_with_shard_and_key(tmp_path: Path, content: bytes) -> None:
    dataset = write_dataset(open_store(tmp_path), train=23)
    for shard in dataset.index.splits["train"].shards:
        dataset.store.put(shard.name, content)
    with pytest.raises(DamagedError, match=r"train/00000\d\.tar: t-0\d\d: .*index"):
        read(dataset, 1)


def test_a_missing_shard_does_not_count_as_bad_samples(tmp_path: Path) -> None:
    dataset = write_dataset(open_store(tmp_path), train=23)
    dataset.store.delete(dataset.index.splits["train"].shards[0].name)
    with pytest.raises(NotFound, match=r"train/000000\.tar: no such file"):
        read(dataset, 10, bad=BadSamples(1, 23))


# ---- samples that do not decode


def with_bad(folder: Path, *bad: int) -> Dataset:
    """23 samples, some with half a picture but the right crc32."""
    made = list(samples("t", 23, 48, 56))
    for nth in bad:
        made[nth] = replace(made[nth], sharp_png=made[nth].sharp_png[:500])
    store = open_store(folder)
    return Dataset(store, Index(made={}, splits={"train": write_split(store, "train", made, 60_000)}))


def key_of(dataset: Dataset, epoch: int, position: int) -> str:
    shard, nth = plan_of(dataset).sample(epoch, position)
    return dataset.samples(dataset.index.splits["train"].shards[shard])[nth].key


@given(st.sets(st.integers(0, 22), min_size=1, max_size=4), st.integers(0, 9), st.sampled_from([1, 2, 3]))
def test_a_bad_sample_is_replaced_by_the_previous_good_one_of_its_lane(
    tmp_path_factory: pytest.TempPathFactory, bad: set[int], done: int, num_ranks: int
) -> None:
    """Compared with the crop of the expected sample, for any start and number of ranks; a lane has five samples."""
    folder = tmp_path_factory.mktemp("bad")
    dataset = with_bad(folder, *bad)
    plan, wrong = plan_of(dataset), {f"t-{nth:03d}" for nth in bad}
    per_epoch = plan.updates_per_epoch
    for rank in range(num_ranks):
        counted = BadSamples(1, 23)
        for batch in read(dataset, 6, rank=rank, num_ranks=num_ranks, images_seen=4 * done, bad=counted):
            for position, crop in zip(batch.positions, batch.sharp, strict=True):
                lane, update = divmod(position, per_epoch)
                order = [update, *range(update - 1, -1, -1), *range(update + 1, per_epoch)]
                key = next(
                    key
                    for key in (key_of(dataset, batch.epoch, lane * per_epoch + u) for u in order)
                    if key not in wrong
                )
                whole = picture(int(key[-3:]), 48, 56)
                draw = randomness.augmentation(plan.seed, batch.epoch, position)
                assert np.array_equal(crop.permute(1, 2, 0).numpy(), augment(whole, DATA, draw))


def test_bad_samples_are_counted_at_each_use_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, bad = with_bad(tmp_path, 7), BadSamples(0.2, 23)
    seen = read(dataset, 5 * 4, bad=bad)
    uses = sum(key_of(dataset, batch.epoch, p) == "t-007" for batch in seen for p in batch.positions)
    assert 0 < uses <= bad.count  # a few more were read ahead
    assert caplog.text.count("t-007") == 1
    assert "t-007.sharp.png: does not decode" in caplog.text


def test_too_many_bad_samples_are_an_error_with_names(tmp_path: Path) -> None:
    dataset = with_bad(tmp_path, *range(4))
    read(dataset, 20, bad=BadSamples(4 / 23 * 5, 23))
    with pytest.raises(InputError, match=r"--max-bad-share 0\.1 .*t-00"):
        read(dataset, 20, bad=BadSamples(0.1, 23))


def test_a_picture_smaller_than_the_crop_is_a_bad_sample(tmp_path: Path) -> None:
    made = list(samples("t", 23, 48, 56))
    made[3] = replace(made[3], sharp_png=pictures.encode_png(picture(0, 20, 20)))
    store = open_store(tmp_path)
    dataset = Dataset(store, Index(made={}, splits={"train": write_split(store, "train", made, 60_000)}))
    bad = BadSamples(1, 23)
    read(dataset, 15, bad=bad)
    assert bad.count


# ---- the disk cache


def test_with_a_cache_later_epochs_need_no_network(dataset: Dataset, tmp_path: Path) -> None:
    counted = replace(dataset, store=Flaky(dataset.store, wrong=0))
    cached = replace(counted, cache=Cache(counted.store, tmp_path, 1 << 30, "v"))
    plain = read(dataset, 20)
    epochs = read(cached, 20)
    assert all(torch.equal(a.sharp, b.sharp) for a, b in zip(plain, epochs, strict=True))
    once = counted.store.traffic.read_bytes
    shards = dataset.index.splits["train"].shards
    assert once == sum(shard.size_bytes + len(dataset.store.get(shard.table)) for shard in shards)
    read(cached, 20, images_seen=40)
    assert counted.store.traffic.read_bytes == once


def test_wrong_bytes_in_the_cache_are_fetched_again(dataset: Dataset, tmp_path: Path) -> None:
    cached = replace(dataset, cache=Cache(dataset.store, tmp_path, 1 << 30, "v"))
    plain = read(cached, 5)
    for path in (tmp_path / "chunks").iterdir():
        path.write_bytes(path.read_bytes()[:-5000] + bytes(2500))
    assert all(torch.equal(a.sharp, b.sharp) for a, b in zip(plain, read(cached, 5), strict=True))


def test_pending_reads_are_cancelled_when_the_consumer_stops(dataset: Dataset) -> None:
    stream = batches(dataset, plan_of(dataset), range(4), DATA, 0, 2, BadSamples(0, 1))
    next(stream)
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
