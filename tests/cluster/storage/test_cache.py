"""The disk cache: the bytes of the store, bounded, shared by ranks, and never the cause of a failure."""

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage.cache import Cache
from cluster.storage.folder import FolderStore

CHUNK = 100
SIZE = 1234


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.storage.cache.CHUNK_BYTES", CHUNK)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    store = FolderStore(str(tmp_path_factory.mktemp("store")))
    for key in "abc":
        store.put(key, os.urandom(SIZE))
    return store


def cached_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "chunks").glob("*"))


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, SIZE - 1), st.integers(1, SIZE)), max_size=30), st.data()
)
def test_any_ranges_equal_those_of_the_store_and_the_limit_holds(
    tmp_path_factory: pytest.TempPathFactory, store: FolderStore, reads: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    folder, limit = tmp_path_factory.mktemp("cache"), data.draw(st.sampled_from([0, CHUNK, 7 * CHUNK, 99 * CHUNK]))
    cache = Cache(store, folder, limit, "v")
    for key, start, length in reads:
        end = min(SIZE, start + length)
        assert cache.get(key, start, end) == store.get(key, start, end)
        assert cached_bytes(folder) <= limit


def test_cached_chunks_are_not_fetched_again_by_any_rank(store: FolderStore, tmp_path: Path) -> None:
    assert len(Cache(store, tmp_path, 10**6, "v").get("a", 0, SIZE)) == SIZE
    before = store.traffic.read_bytes
    assert Cache(store, tmp_path, 10**6, "v").get("a", 50, SIZE) == store.get("a", 50, SIZE)
    assert store.traffic.read_bytes - before == SIZE - 50, "the test's own read"


def test_chunks_of_another_dataset_version_are_not_used(store: FolderStore, tmp_path: Path) -> None:
    old = Cache(store, tmp_path, 10**6, "old").get("b", 0, SIZE)
    store.put("b", bytes(SIZE))
    assert Cache(store, tmp_path, 10**6, "old").get("b", 0, SIZE) == old
    assert Cache(store, tmp_path, 10**6, "new").get("b", 0, SIZE) == bytes(SIZE)


def test_some_chunks_survive_an_epoch_when_the_limit_is_smaller_than_the_dataset(
    store: FolderStore, tmp_path: Path
) -> None:
    """LRU eviction would never hit."""
    cache = Cache(store, tmp_path, 20 * CHUNK, "v")
    for _ in range(4):
        for key in "abc":
            cache.get(key, 0, SIZE)
    before = store.traffic.read_bytes
    for key in "abc":
        cache.get(key, 0, SIZE)
    assert store.traffic.read_bytes - before < 3 * SIZE


def test_a_full_disk_is_logged_once_and_costs_only_speed(
    store: FolderStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(store, tmp_path / "cache", 10**6, "v")
    with mock.patch.object(Path, "write_bytes", side_effect=OSError(28, "No space left on device")):
        for key in "abc":
            assert cache.get(key, 0, SIZE) == store.get(key, 0, SIZE)
    assert caplog.text.count("No space left on device") == 1


def test_temporary_files_of_a_killed_writer_are_not_read_and_are_evicted(store: FolderStore, tmp_path: Path) -> None:
    cache = Cache(store, tmp_path, 3 * CHUNK, "v")
    cache.get("a", 0, CHUNK)
    (chunk,) = (tmp_path / "chunks").iterdir()
    chunk.rename(chunk.with_suffix(".0123.partial"))
    chunk.with_suffix(".0123.partial").write_bytes(b"half")
    for start in range(0, 10 * CHUNK, CHUNK):
        assert cache.get("a", start, start + CHUNK) == store.get("a", start, start + CHUNK)
    assert cached_bytes(tmp_path) <= 3 * CHUNK


def test_other_files_in_the_folder_are_kept(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_bytes(bytes(9 * CHUNK))
    cache = Cache(store, tmp_path, 2 * CHUNK, "v")
    for start in range(0, 10 * CHUNK, CHUNK):
        cache.get("a", start, start + CHUNK)
    assert (tmp_path / "thesis.doc").stat().st_size == 9 * CHUNK


def test_ranks_can_share_the_cache(store: FolderStore, tmp_path: Path) -> None:
    wanted = {key: store.get(key) for key in "abc"}
    turns = itertools.count()

    def rank(number: int) -> None:
        cache = Cache(store, tmp_path, 5 * CHUNK, "v")
        for key, start in itertools.product("abc", range(number, SIZE, 37)):
            next(turns)
            assert cache.get(key, start, min(SIZE, start + 90)) == wanted[key][start : start + 90]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rank, range(4)))
    assert next(turns) > 300
