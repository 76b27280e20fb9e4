"""Commit order, verification and retention, on folders and buckets."""

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cluster.errors import DamagedError, StorageUnavailable
from cluster.storage import Store, join, open_store
from cluster.storage.checkpoints import Checkpoints
from cluster.storage.lease import acquire_lease, check_lease


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path if request.param == "folder" else join(request.getfixturevalue("bucket"), "run"))


def saved(store: Store, *images: int, keep: int = 9, scores: dict[int, float] | None = None) -> Checkpoints:
    checkpoints = Checkpoints(store, keep)
    for n in images:
        checkpoints.save(n, {"state.pt": f"state {n}".encode(), "other": b"o"}, (scores or {}).get(n))
    checkpoints.wait()
    return checkpoints


def test_the_newest_is_loaded_with_its_parts(store: Store) -> None:
    found = saved(store, 8, 1000, 24).newest()
    assert found is not None
    assert found[0].images_seen == 1000
    assert found[1] == {"state.pt": b"state 1000", "other": b"o"}


def test_an_empty_store_has_no_checkpoint(store: Store) -> None:
    assert Checkpoints(store).newest() is None


def test_parts_without_a_manifest_are_no_checkpoint(store: Store) -> None:
    checkpoints = saved(store, 8, 16)
    store.delete("checkpoints/000000000016/manifest.json")
    assert [c.images_seen for c in checkpoints.list()] == [8]


@pytest.mark.parametrize("damage", [b"state 17", b"", b"state 16 and more"])
def test_a_damaged_newest_is_skipped_and_logged(store: Store, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = saved(store, 8, 16)
    store.put("checkpoints/000000000016/state.pt", damage)
    found = checkpoints.newest()
    assert found is not None
    assert found[0].images_seen == 8
    assert "000000000016/state.pt" in caplog.text


def test_a_damaged_part_is_taken_from_the_previous_checkpoint(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = saved(store, 8, 16)
    store.put("checkpoints/000000000016/state.pt", b"state 17")
    assert checkpoints.newest_part("state.pt") == b"state 8"
    assert caplog.text.count("damaged checkpoint") == 1
    assert checkpoints.newest_part("other") == b"o"


def test_the_next_save_deletes_what_a_killed_upload_left(store: Store) -> None:
    saved(store, 8)
    store.put("checkpoints/000000000012/state.pt", b"half of a checkpoint")
    store.put("checkpoints/000000000099/state.pt", b"of a later upload, which may still be running")
    saved(store, 16)
    folders = {key.split("/")[1] for key in store.list("checkpoints/")}
    assert folders == {"000000000008", "000000000016", "000000000099"}


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_no_longer_counts_among_the_newest_after_resume(store: Store, keep: int) -> None:
    """Otherwise the next save, at fewer images, would be the oldest and deleted at once."""
    saved(store, 200, 400, keep=2)
    store.put("checkpoints/000000000400/state.pt", b"damaged")
    writer = Checkpoints(store, keep)
    found = writer.resume()
    assert found is not None
    assert found[0].images_seen == 200
    for n in (250, 300):
        writer.save(n, {"state.pt": b"x"})
    writer.wait()
    newest = writer.newest()
    assert newest is not None
    assert newest[0].images_seen == 300
    writer.save(500, {"state.pt": b"y"})
    writer.wait()
    assert not [key for key in store.list() if "000000000400" in key], "its parts are deleted by the next newer save"


def test_a_checkpoint_with_a_missing_part_is_skipped(store: Store) -> None:
    checkpoints = saved(store, 8, 16)
    store.delete("checkpoints/000000000016/other")
    found = checkpoints.newest()
    assert found is not None
    assert found[0].images_seen == 8


MANIFEST = {"images_seen": 16, "score": None, "files": {"x": {"sha256": "0", "bytes": 1}}, "committed_at": 1.5}


@pytest.mark.parametrize(
    "change",
    [
        {"images_seen": "16"},
        {"images_seen": 16.5},
        {"images_seen": None},
        {"images_seen": True},
        {"images_seen": 24},
        {"images_seen": -16},
        {"score": "good"},
        {"files": ["x"]},
        {"files": {"x": {"sha256": 0, "bytes": 1}}},
        {"files": {"x": {"bytes": 1}}},
        {"committed_at": math.nan},
    ],
    ids=str,
)
def test_a_manifest_whose_fields_are_damaged_is_skipped(tmp_path: Path, change: dict[str, Any]) -> None:
    store = open_store(tmp_path)
    checkpoints = saved(store, 8)
    store.put("checkpoints/000000000016/manifest.json", json.dumps(MANIFEST).encode())
    assert [c.images_seen for c in checkpoints.list()] == [8, 16]
    store.put("checkpoints/000000000016/manifest.json", json.dumps(MANIFEST | change).encode())
    assert [c.images_seen for c in checkpoints.list()] == [8]


def test_an_infinite_score_counts_as_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    checkpoints = saved(store, 8, scores={8: math.inf})
    assert [c.score for c in checkpoints.list()] == [None]
    old = json.dumps(MANIFEST | {"score": math.inf})
    assert "Infinity" in old
    store.put("checkpoints/000000000016/manifest.json", old.encode())
    assert [c.score for c in checkpoints.list()] == [None, None]


@pytest.mark.parametrize("data", [b'{"images_seen": 16, ', b"", b"[]", b"\xff", b"[" * 100_000])
def test_an_unreadable_manifest_is_skipped(store: Store, data: bytes) -> None:
    checkpoints = saved(store, 8, 16)
    store.put("checkpoints/000000000016/manifest.json", data)
    assert [c.images_seen for c in checkpoints.list()] == [8]


def test_the_newest_few_and_the_best_are_kept(store: Store) -> None:
    checkpoints = saved(store, 8, 16, 24, 32, 40, keep=2, scores={8: 20.0, 16: 25.0, 24: 24.0})
    assert [c.images_seen for c in checkpoints.list()] == [16, 32, 40]
    assert {key.split("/")[1] for key in store.list("checkpoints/")} == {f"{n:012d}" for n in (16, 32, 40)}


def test_a_failed_upload_is_raised_at_the_next_call(tmp_path: Path) -> None:
    class Full:
        url = "full"

        def list(self, prefix: str = "") -> list[str]:
            return []

        def put(self, key: str, data: bytes) -> None:
            raise OSError("disk full")

    checkpoints = Checkpoints(Full())
    checkpoints.save(8, {"state.pt": b""})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.wait()
    checkpoints.wait()


@pytest.mark.parametrize("writes", range(4))
def test_a_save_killed_at_any_write_leaves_the_previous_checkpoint(tmp_path: Path, writes: int) -> None:
    """A save is three writes, two parts and a manifest."""
    store = open_store(tmp_path)
    saved(store, 8)
    left, put = writes, store.put

    def dying_put(key: str, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        put(key, data)

    store.put = dying_put
    checkpoints = Checkpoints(store)
    checkpoints.save(16, {"state.pt": b"state 16", "other": b"o"})
    if writes < 3:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.wait()
    checkpoints.wait()
    found = Checkpoints(open_store(tmp_path)).newest()
    assert found is not None
    assert found[0].images_seen == (16 if writes == 3 else 8)


class Counting:
    """A store that records its requests."""

    def __init__(self, store: Store) -> None:
        self._store, self.requests = store, list[tuple[str, ...]]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)

        def recorded(*arguments: Any) -> Any:
            self.requests.append((name, *(argument for argument in arguments if isinstance(argument, str))))
            return value(*arguments)

        return recorded if callable(value) else value


def test_a_save_makes_seven_requests(store: Store) -> None:
    """The parts, the manifest, the lease before each change and commit, and retention."""
    parts = {"recipe.json": b"{}", "generator.safetensors": b"g", "state.pt": b"s"}
    counting: Any = Counting(store)
    with acquire_lease(store.url) as holder:
        checkpoints = Checkpoints(counting, keep=2, may_commit=lambda: check_lease(counting, holder.lease))
        for images_seen in (8, 16, 24, 32):
            checkpoints.wait()
            counting.requests.clear()
            checkpoints.save(images_seen, parts)
        checkpoints.wait()
    names = [name for name, *_ in counting.requests]
    assert names == ["get", "put", "put", "put", "get", "put", "delete"]
    assert counting.requests[-1][1].endswith("000000000016/manifest.json"), "manifests are deleted first"
    assert [c.images_seen for c in checkpoints.list()] == [24, 32]


def test_resume_reads_each_part_once(store: Store) -> None:
    saved(store, 8, 16)
    counting: Any = Counting(store)
    found = Checkpoints(counting).resume()
    assert found is not None
    assert found[1] == {"state.pt": b"state 16", "other": b"o"}
    newest = "checkpoints/000000000016"
    assert sorted(counting.requests) == [
        ("get", "checkpoints/000000000008/manifest.json"),
        ("get", f"{newest}/manifest.json"),
        ("get", f"{newest}/other"),
        ("get", f"{newest}/state.pt"),
        ("list", "checkpoints/"),
    ]


def test_a_save_over_a_committed_checkpoint_deletes_its_manifest_first(store: Store) -> None:
    """The old manifest must not vouch for new bytes, also when this process wrote it."""
    counting: Any = Counting(store)
    checkpoints = Checkpoints(counting)
    for state in (b"old", b"new"):
        checkpoints.save(8, {"state.pt": state})
        checkpoints.wait()
    changes = [request for request in counting.requests if request[0] != "list"]
    folder = "checkpoints/000000000008"
    put = [("put", f"{folder}/state.pt"), ("put", f"{folder}/manifest.json")]
    assert changes == [*put, ("delete", f"{folder}/manifest.json"), *put]


def test_a_failed_upload_is_deleted_by_the_next_save_of_the_same_process(store: Store) -> None:
    failing: Any = Counting(store)
    checkpoints = Checkpoints(failing)
    failing.put = mock.Mock(side_effect=[store.put("checkpoints/000000000008/state.pt", b"8"), StorageUnavailable])
    checkpoints.save(8, {"state.pt": b"8", "other": b"o"})
    with pytest.raises(StorageUnavailable):
        checkpoints.wait()
    del failing.put
    checkpoints.save(16, {"state.pt": b"16"})
    checkpoints.wait()
    assert {key.split("/")[1] for key in store.list("checkpoints/")} == {"000000000016"}
    assert checkpoints.uploads.failures == checkpoints.uploads.committed == 1


def test_a_part_is_verified_when_it_is_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (checkpoint,) = saved(store, 8).list()
    store.put("checkpoints/000000000008/other", b"p")
    with pytest.raises(DamagedError, match="000000000008/other"):
        Checkpoints(store).load_part(checkpoint, "other")
