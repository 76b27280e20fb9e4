"""What every store promises, on folders and buckets."""

import os
import pickle
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from cluster.errors import InputError, NotFound, StorageUnavailable
from cluster.storage import Retry, Store, join, open_store, read_url
from cluster.storage.s3 import S3Store


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


def test_several_objects_are_deleted_in_one_request(store: Store) -> None:
    for key in ["a/x", "a/y", "b"]:
        store.put(key, b"1")
    requests: list[str] = []
    if isinstance(store, S3Store):
        store._client.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.method))
    store.delete("a/x", "absent", "a/y")
    assert store.list() == ["b"]
    assert requests in ([], ["POST", "GET"]), "a bucket: DeleteObjects, then the listing"
    store.delete()


def test_a_key_that_cannot_be_deleted_is_an_error(bucket: str) -> None:
    store = S3Store(bucket, Retry())
    refused = {"Errors": [{"Key": "a", "Code": "AccessDenied", "Message": ""}]}
    busy = {"Errors": [{"Key": "a", "Code": "InternalError", "Message": ""}]}
    with mock.patch.object(store._client, "delete_objects", side_effect=[busy, {}, refused]):
        store.delete("a", "b")
        assert store.traffic.retries == 1
        with pytest.raises(InputError, match="AccessDenied"):
            store.delete("a", "b")


def test_missing_objects_are_named_with_their_whole_url(store: Store) -> None:
    with pytest.raises(NotFound) as raised:
        store.get("not/there")
    assert f"{store.url}/not/there" in str(raised.value)


def test_a_store_can_be_pickled(store: Store) -> None:
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).get("x") == b"1"


def test_read_url_reads_one_object(store: Store) -> None:
    store.put("folder/x", b"1")
    assert read_url(join(store.url, "folder/x")) == b"1"


def test_a_missing_bucket_is_refused_by_name(bucket: str) -> None:
    for call in (lambda store: store.list(), lambda store: store.get("x"), lambda store: store.put("x", b"")):
        with pytest.raises(InputError, match=r"s3://no-such-bucket-here/.*no such bucket"):
            call(open_store("s3://no-such-bucket-here/p"))


def test_an_unreachable_server_is_reported_with_its_variable(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable, match=r"AWS_ENDPOINT_URL.*retried for 0 s"):
        open_store(bucket, Retry(limit_s=0.1)).list()


@pytest.mark.parametrize("url", ["http://host/x", "gs://bucket/x", "pipe:cat /etc/passwd", "file:///x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=re.escape(url)):
        open_store(url)


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd"])
def test_a_key_outside_the_folder_is_refused(tmp_path: Path, key: str) -> None:
    store = open_store(tmp_path / "store")
    for call in (lambda: store.get(key), lambda: store.put(key, b""), lambda: store.delete(key)):
        with pytest.raises(InputError, match=re.escape(repr(key))):
            call()


def test_of_concurrent_creates_one_succeeds(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: (n, store.create("x", b"%d" % n)), range(8)))
    winners = [n for n, created in won if created]
    winner = int(store.get("x"))
    assert winner in winners
    if not store.url.startswith("s3://"):  # not atomic on all S3 servers
        assert winners == [winner]
    assert store.create("x", b"%d" % winner), "its own bytes: the response of the first attempt may have been lost"
    assert not store.create("x", b"other")
    assert store.list() == ["x"]


def test_a_killed_writer_leaves_the_old_file_intact(tmp_path: Path) -> None:
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
