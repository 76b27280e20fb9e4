"""Commit order, verification and retention, on folders and buckets."""

from pathlib import Path

import pytest

from cluster.errors import DamagedError
from cluster.storage import Store, join, open_store
from cluster.storage.checkpoints import Checkpoints


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path if request.param == "folder" else join(request.getfixturevalue("bucket"), "run"))


def saved(store: Store, *images: int, keep: int = 9, scores: dict[int, float] | None = None) -> Checkpoints:
    checkpoints = Checkpoints(store, keep)
    for n in images:
        checkpoints.save(n, {"state.pt": f"state {n}".encode(), "other": b"o"}, (scores or {}).get(n))
    checkpoints.wait()
    return checkpoints


def test_the_newest_comes_back_with_its_bytes(store: Store) -> None:
    found = saved(store, 8, 1000, 24).newest()
    assert found is not None
    assert found[0].images_seen == 1000
    assert found[1] == {"state.pt": b"state 1000", "other": b"o"}


def test_there_is_none_before_the_first(store: Store) -> None:
    assert Checkpoints(store).newest() is None


def test_one_without_a_manifest_is_none(store: Store) -> None:
    checkpoints = saved(store, 8, 16)
    store.delete("checkpoints/000000000016/manifest.json")
    assert [c.images_seen for c in checkpoints.list()] == [8]


@pytest.mark.parametrize("damage", [b"state 17", b"", b"state 16 and more"])
def test_a_damaged_newest_is_passed_over_and_named(
    store: Store, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(store, 8, 16)
    store.put("checkpoints/000000000016/state.pt", damage)
    found = checkpoints.newest()
    assert found is not None
    assert found[0].images_seen == 8
    assert "000000000016/state.pt" in caplog.text


def test_a_part_of_a_damaged_newest_is_taken_from_the_one_before(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(store, 8, 16)
    store.put("checkpoints/000000000016/state.pt", b"state 17")
    assert checkpoints.newest_part("state.pt") == b"state 8"
    assert caplog.text.count("checkpoint refused, the one before is used") == 1
    assert checkpoints.newest_part("other") == b"o"


def test_what_an_upload_that_was_killed_left_is_removed_by_the_next(store: Store) -> None:
    saved(store, 8)
    store.put("checkpoints/000000000012/state.pt", b"half of a checkpoint")
    store.put("checkpoints/000000000099/state.pt", b"of another writer, who may still be at it")
    saved(store, 16)
    folders = {key.split("/")[1] for key in store.list("checkpoints/")}
    assert folders == {"000000000008", "000000000016", "000000000099"}


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_is_no_longer_among_the_newest_when_the_run_goes_on(store: Store, keep: int) -> None:
    """Else what is saved after it, at fewer images, would be the oldest and removed at once."""
    saved(store, 200, 400, keep=2)
    store.put("checkpoints/000000000400/state.pt", b"damaged")
    writer = Checkpoints(store, keep)
    found = writer.resume()
    assert found is not None
    assert found.images_seen == 200
    for n in (250, 300):
        writer.save(n, {"state.pt": b"x"})
    writer.wait()
    newest = writer.newest()
    assert newest is not None
    assert newest[0].images_seen == 300
    writer.save(500, {"state.pt": b"y"})
    writer.wait()
    assert not [key for key in store.list() if "000000000400" in key], "its parts go with the next that is newer"


def test_a_missing_part_is_passed_over(store: Store) -> None:
    checkpoints = saved(store, 8, 16)
    store.delete("checkpoints/000000000016/other")
    found = checkpoints.newest()
    assert found is not None
    assert found[0].images_seen == 8


def test_an_unreadable_manifest_is_passed_over(store: Store) -> None:
    checkpoints = saved(store, 8, 16)
    store.put("checkpoints/000000000016/manifest.json", b'{"images_seen": 16, ')
    assert [c.images_seen for c in checkpoints.list()] == [8]


def test_the_newest_few_and_the_best_are_kept(store: Store) -> None:
    checkpoints = saved(store, 8, 16, 24, 32, 40, keep=2, scores={8: 20.0, 16: 25.0, 24: 24.0})
    assert [c.images_seen for c in checkpoints.list()] == [16, 32, 40]
    assert {key.split("/")[1] for key in store.list("checkpoints/")} == {f"{n:012d}" for n in (16, 32, 40)}


def test_a_failed_upload_is_raised_at_the_next_call(tmp_path: Path) -> None:
    class Full:
        url = "full"

        def delete(self, key: str) -> None: ...

        def put(self, key: str, data: bytes) -> None:
            raise OSError("disk full")

    checkpoints = Checkpoints(Full())
    checkpoints.save(8, {"state.pt": b""})
    with pytest.raises(OSError, match="disk full"):
        checkpoints.wait()
    checkpoints.wait()


@pytest.mark.parametrize("writes", range(4))
def test_dying_at_any_write_leaves_the_one_before(tmp_path: Path, writes: int) -> None:
    """Three writes make a checkpoint (two parts and a manifest): whichever is the last, a start finds a whole one."""
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


def test_a_part_is_verified_when_it_is_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (checkpoint,) = saved(store, 8).list()
    store.put("checkpoints/000000000008/other", b"p")
    with pytest.raises(DamagedError, match="000000000008/other"):
        Checkpoints(store).load_part(checkpoint, "other")
