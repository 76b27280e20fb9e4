"""The index: damaged, edited and old ones, and tables that are read only where samples are needed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DamagedError, InputError
from cluster.storage import open_store
from cluster.storage.folder import FolderStore
from deblur.config.recipes import DataRecipe
from deblur.data.dataset import Dataset, open_dataset
from deblur.data.index import INDEX, Index, Sample, Shard, Split, encode_table, read_index, read_table, write_index
from deblur.data.loader import BadSamples, batches
from deblur.data.plan import Plan, lanes_of
from tests.datasets import write_dataset


def test_a_root_without_an_index_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.json: .*deblur\.pack.*DEBLUR_DATA"):
        read_index(open_store(tmp_path))


def test_an_index_of_another_version_or_truncated_or_edited_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_dataset(store, train=3)
    raw = json.loads(store.get(INDEX))
    store.put(INDEX, json.dumps(raw | {"version": 99}).encode())
    with pytest.raises(InputError, match="version 99"):
        read_index(store)
    store.put(INDEX, json.dumps(raw).encode()[:-20])
    with pytest.raises(DamagedError, match=r"index\.json"):
        read_index(store)
    store.put(INDEX, json.dumps({name: value for name, value in raw.items() if name != "digest"}).encode())
    with pytest.raises(DamagedError, match="digest"):
        read_index(store)
    raw["splits"]["train"]["shards"][0]["num_samples"] += 1
    store.put(INDEX, json.dumps(raw).encode())
    with pytest.raises(DamagedError, match="digest"):
        read_index(store)


@pytest.mark.parametrize(
    "name", ["pipe:curl example.org", "../../etc/passwd", "/etc/passwd", "s3://other/train/000000.tar"]
)
def test_an_index_with_names_outside_the_root_is_refused(tmp_path: Path, name: str) -> None:
    index = write_dataset(open_store(tmp_path), train=3).index
    split = index.splits["train"]
    wrong = replace(split, shards=(replace(split.shards[0], name=name),))
    write_index(open_store(tmp_path), replace(index, splits={"train": wrong}))
    with pytest.raises(DamagedError, match=r"index\.json: unreadable.*shard name"):
        read_index(open_store(tmp_path))


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="./\n", exclude_categories=["Cs"]), min_size=1),
            st.integers(0, 2**63),
            st.integers(0, 2**40),
            st.integers(0, 2**32 - 1),
        ),
        min_size=1,
    )
)
def test_a_table_holds_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    samples = tuple(Sample(key=key, offset=at, length=length, crc32=crc) for key, at, length, crc in rows)
    store, data = open_store(tmp_path_factory.mktemp("table")), encode_table(samples)
    assert data == encode_table(samples)
    shard = shard_of(data, len(samples))
    store.put(shard.table, data)
    assert read_table(store, shard) == samples


def shard_of(table: bytes, count: int) -> Shard:
    sha256 = hashlib.sha256(table).hexdigest()
    return Shard(name="train/000000.tar", size_bytes=1, num_samples=count, table_sha256=sha256)


@pytest.mark.parametrize("key", ["../x", "a.pickle", ""])
def test_keys_outside_the_shard_are_refused(tmp_path: Path, key: str) -> None:
    store, data = open_store(tmp_path), encode_table([Sample(key=key, offset=0, length=1, crc32=0)])
    store.put("train/000000.npz", data)
    with pytest.raises(DamagedError, match=r"train/000000\.npz"):
        read_table(store, shard_of(data, 1))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-30], lambda data: data[:50] + data[60:]])
def test_a_damaged_table_is_named_even_if_the_index_has_its_digest(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store, data = open_store(tmp_path), damage(encode_table([Sample(key="x", offset=0, length=1, crc32=0)]))
    store.put("train/000000.npz", data)
    with pytest.raises(DamagedError, match=r"train/000000\.npz: unreadable"):
        read_table(store, shard_of(data, 1))


def test_a_table_that_would_execute_something_is_not_unpickled(tmp_path: Path) -> None:
    data = tmp_path / "evil.npz"
    np.savez(data, keys=np.array([Path("x").touch], object), places=np.zeros((1, 3), np.uint64))
    store = open_store(tmp_path)
    store.put("train/000000.npz", data.read_bytes())
    with pytest.raises(DamagedError, match="unreadable"):
        read_table(store, shard_of(data.read_bytes(), 1))


def test_a_table_of_another_packing_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(open_store(tmp_path), train=9)
    one, two, *_ = dataset.index.splits["train"].shards
    dataset.store.put(one.table, dataset.store.get(two.table))
    with pytest.raises(DamagedError, match=rf"{one.table}: differs from the index"):
        dataset.samples(one)
    assert len(dataset.samples(two)) == two.num_samples


# ---- version 1


def in_version_1(dataset: Dataset) -> dict[str, Any]:
    """The index as version 0.1 wrote it: every sample in index.json, and a digest over all of it."""
    splits = {
        name: {
            "shards": [
                {
                    "name": shard.name,
                    "size_bytes": shard.size_bytes,
                    "samples": list(map(asdict, dataset.samples(shard))),
                }
                for shard in split.shards
            ],
            "smallest": list(split.smallest),
        }
        for name, split in dataset.index.splits.items()
    }
    content = {"made": dict(dataset.index.made), "splits": splits}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"version": 1, "digest": digest, **content}


def test_a_dataset_of_version_1_is_read_as_it_was(tmp_path: Path) -> None:
    old = write_dataset(open_store(tmp_path), train=23)
    raw = in_version_1(old)
    old.store.put(INDEX, json.dumps(raw).encode())
    for key in old.store.list():
        if key.endswith(".npz"):
            old.store.delete(key)
    found = open_dataset(str(tmp_path))
    assert found.index.digest == raw["digest"]
    recipe = DataRecipe(batch_size=4, crop=24)
    sizes = tuple(shard.num_samples for shard in found.index.splits["train"].shards)
    plan = Plan(shard_sizes=sizes, batch_size=4, seed=5)
    assert sizes == tuple(shard.num_samples for shard in old.index.splits["train"].shards)
    stream = batches(found, plan, lanes_of(0, 1, 4), recipe, 0, 1, BadSamples(0, 1))
    assert [batch.positions for batch in islice(stream, 5)]
    stream.close()
    raw["splits"]["train"]["shards"][0]["samples"][0]["crc32"] += 1
    old.store.put(INDEX, json.dumps(raw).encode())
    with pytest.raises(DamagedError, match="digest"):
        read_index(old.store)


# ---- large datasets


class Counting(FolderStore):
    """Counts what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self.reads.append(key)
        return super().get(key, start, end)


def test_a_rank_reads_the_tables_of_its_lanes_only(tmp_path: Path) -> None:
    write_dataset(open_store(tmp_path), train=60, size=(48, 56), shard_bytes=20_000)
    store = Counting(tmp_path)
    dataset = Dataset(store, read_index(store))
    shards = dataset.index.splits["train"].shards
    plan = Plan(shard_sizes=tuple(shard.num_samples for shard in shards), batch_size=4, seed=5)
    lanes = lanes_of(1, 4, 4)
    stream = batches(dataset, plan, lanes, DataRecipe(batch_size=4, crop=24), 0, 1, BadSamples(0, 1))
    seen = list(islice(stream, 2))
    stream.close()
    tables = [key for key in store.reads if key.endswith(".npz")]
    assert seen
    assert len(tables) == len(set(tables)) < len(shards) / 2
    needed = {shards[plan.sample(0, plan.position(lane, n))[0]].table for lane in lanes for n in range(2)}
    assert needed <= set(tables)


def test_the_plan_of_ten_million_samples_uses_each_once() -> None:
    """On a sample of lanes: all positions of an epoch would take minutes."""
    plan = Plan(shard_sizes=(500,) * 20_000, batch_size=1000, seed=3)
    places = {
        plan.sample(2, plan.position(lane, update)) for lane in range(0, 1000, 50) for update in range(0, 9000, 30)
    }
    assert len(places) == 20 * 300
    assert plan.updates_per_epoch == 10_000
    for shard, nth in islice(places, 1000):
        assert 0 <= shard < 20_000
        assert 0 <= nth < 500


def test_an_index_of_twenty_thousand_shards_is_small(tmp_path: Path) -> None:
    shards = tuple(
        Shard(name=f"train/{n:06d}.tar", size_bytes=1, num_samples=500, table_sha256="0" * 64) for n in range(20_000)
    )
    index = Index(made={}, splits={"train": Split(shards=shards, smallest=(1, 1))})
    store = open_store(tmp_path)
    write_index(store, index)
    assert (tmp_path / INDEX).stat().st_size < 5_000_000
    found = read_index(store)
    assert (found.digest, found.splits["train"].num_samples) == (index.digest, 10_000_000)
