"""One law for every store: folders and buckets."""

import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.errors import InputError, NotFound, StorageUnavailable
from cluster.storage import Retry, Store, join, open_store, read_url


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(tmp_path / "store")
    return open_store(join(request.getfixturevalue("bucket"), "some/prefix"))


def test_get_returns_what_put_wrote(store: Store) -> None:
    data = os.urandom(3_000_000)
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data


def test_get_of_a_range_equals_the_slice(store: Store) -> None:
    data = os.urandom(10_000)
    store.put("x", data)
    for start, end in [(0, 1), (10, 10), (17, 4096), (9_999, 10_000), (5_000, None), (0, 10_000)]:
        assert store.get("x", start, end) == data[start:end]


def test_put_replaces_the_whole_object(store: Store) -> None:
    store.put("x", b"long old content")
    store.put("x", b"new")
    assert store.get("x") == b"new"


def test_list_is_sorted_and_by_prefix(store: Store) -> None:
    for key in ["b", "a/2", "a/10", "ab", "a/sub/1"]:
        store.put(key, b"")
    assert store.list() == sorted(["b", "a/2", "a/10", "ab", "a/sub/1"])
    assert store.list("a/") == ["a/10", "a/2", "a/sub/1"]
    assert store.list("a") == ["a/10", "a/2", "a/sub/1", "ab"]
    assert store.list("nothing/") == []


def test_deleted_objects_are_gone_and_deleting_again_is_no_error(store: Store) -> None:
    store.put("a/x", b"1")
    store.delete("a/x")
    store.delete("a/x")
    assert store.list() == []
    with pytest.raises(NotFound, match="a/x"):
        store.get("a/x")


def test_missing_objects_are_named_with_their_whole_url(store: Store) -> None:
    with pytest.raises(NotFound) as raised:
        store.get("not/there")
    assert f"{store.url}/not/there" in str(raised.value)


def test_a_store_travels_to_another_process(store: Store) -> None:
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).get("x") == b"1"


def test_read_url_reads_one_object(store: Store) -> None:
    store.put("folder/x", b"1")
    assert read_url(join(store.url, "folder/x")) == b"1"


def test_a_missing_bucket_is_refused_by_name(bucket: str) -> None:
    for call in (lambda store: store.list(), lambda store: store.get("x"), lambda store: store.put("x", b"")):
        with pytest.raises(InputError, match=r"s3://no-such-bucket-here/.*no such bucket"):
            call(open_store("s3://no-such-bucket-here/p"))


def test_a_server_that_is_not_there_is_named_with_the_setting(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable, match=r"AWS_ENDPOINT_URL.*given up after 0 s"):
        open_store(bucket, Retry(limit_s=0.1)).list()


@pytest.mark.parametrize("url", ["http://host/x", "gs://bucket/x", "pipe:cat /etc/passwd", "file:///x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="only folders and s3://"):
        open_store(url)


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd"])
def test_a_key_does_not_lead_out_of_a_folder(tmp_path: Path, key: str) -> None:
    store = open_store(tmp_path / "store")
    for call in (lambda: store.get(key), lambda: store.put(key, b""), lambda: store.delete(key)):
        with pytest.raises(InputError, match="leads out of"):
            call()


def test_of_many_that_create_one_object_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: (n, store.create("x", b"%d" % n)), range(8)))
    winners = [n for n, created in won if created]
    winner = int(store.get("x"))
    assert winner in winners
    if not store.url.startswith("s3://"):  # of buckets, not all promise it for the same moment
        assert winners == [winner]
    assert store.create("x", b"%d" % winner), "its own bytes are there: an answer may have been lost"
    assert not store.create("x", b"other")
    assert store.list() == ["x"]


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("x", b"old")
    script = """
        import os, signal, sys
        from cluster import storage
        real = os.replace
        os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        storage.open_store(sys.argv[1]).put("x", b"new" * 1000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=False)
    assert done.returncode == -9
    assert store.get("x") == b"old"
    assert store.list() == ["x"]
