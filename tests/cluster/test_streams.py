"""Reads and writes through faults on real sockets: cut, reset, stalled, throttled and unreachable servers."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fault_proxy import FaultProxy
from benchmarks.fault_proxy import Plan as Faults
from cluster.errors import DamagedError, StorageUnavailable
from cluster.storage import Retry, Store, join, open_store
from cluster.storage.checkpoints import Checkpoints
from deblur.config.recipes import DataRecipe
from deblur.data.dataset import Dataset
from deblur.data.loader import BadSamples, batches
from deblur.data.plan import Plan
from tests.datasets import write_dataset

OBJECT = os.urandom(3_000_000)
RETRY = Retry(limit_s=30, stall_s=0.5)
KINDS = ("cut", "reset", "stall", "unavailable")
LONG = settings.default.max_examples >= 1000


def under_faults(examples: int) -> settings:
    """Number of plans, more in the long profile."""
    many = 200 if LONG else examples
    return settings(max_examples=many, suppress_health_check=[HealthCheck.function_scoped_fixture])


any_plan = st.builds(
    Faults,
    seed=st.integers(0, 10**6),
    share=st.floats(0, 0.9),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1).map(lambda kinds: tuple(sorted(kinds))),
    stall_s=st.just(2.0),
)


@pytest.fixture
def direct(bucket: str) -> Store:
    """The bucket without a proxy."""
    return open_store(join(bucket, "data"))


@pytest.fixture
def proxied(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """proxied(store, plan) is a proxy with that plan, and the same store behind it."""
    proxies: list[FaultProxy] = []

    def behind(store: Store, plan: Faults, retry: Retry = RETRY) -> tuple[FaultProxy, Store]:
        while proxies:
            proxies.pop().stop()
        proxy = FaultProxy(s3_server["AWS_ENDPOINT_URL"], plan)
        proxy.start()
        proxies.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy, open_store(store.url, retry)

    yield behind
    while proxies:
        proxies.pop().stop()


@under_faults(10)
@given(any_plan, st.integers(0, len(OBJECT) - 1), st.integers(1, len(OBJECT)))
def test_reads_are_correct_under_any_faults_below_the_limit(
    direct: Store, proxied, plan: Faults, start: int, length: int
) -> None:
    direct.put("x", OBJECT)
    proxy, store = proxied(direct, plan)
    assert store.get("x", start, min(len(OBJECT), start + length)) == OBJECT[start : start + length]
    assert store.get("x") == OBJECT
    faults = sum(proxy.injected.values())
    assert store.traffic.read_bytes == len(OBJECT) + min(length, len(OBJECT) - start)
    assert (store.traffic.retries > 0) == (faults > 0)
    assert store.traffic.resumed_reads <= store.traffic.retries


@under_faults(3)
@given(any_plan)
def test_uploads_and_listings_are_complete_under_any_faults(direct: Store, proxied, plan: Faults) -> None:
    for key in direct.list():
        direct.delete(key)
    _, store = proxied(direct, plan)
    large = OBJECT * 4  # more than one part
    store.put("a/large", large)
    store.put("a/small", b"1")
    assert store.create("a/once", b"mine")
    assert not store.create("a/once", b"another's")
    store.put("b", b"2")
    store.delete("b")
    assert store.list() == ["a/large", "a/once", "a/small"]
    assert direct.get("a/large") == large
    assert direct.get("a/once") == b"mine"


def test_a_cut_read_resumes_at_the_byte_it_reached(direct: Store, proxied) -> None:
    direct.put("x", OBJECT)
    proxy, store = proxied(direct, Faults(seed=3, share=1.0, kinds=("cut",), in_a_row=4))
    assert store.get("x") == OBJECT
    assert proxy.injected["cut"] == 4
    assert 0 < store.traffic.resumed_reads <= 4


def test_an_object_replaced_during_a_read_is_an_error(direct: Store, proxied) -> None:
    direct.put("x", OBJECT)
    proxy, store = proxied(direct, Faults(share=1.0, kinds=("stall",), in_a_row=1, stall_s=5), Retry(stall_s=4))

    def replace() -> None:
        while not proxy.injected["stall"]:  # counted once the server has answered: the version is known
            time.sleep(0.01)
        direct.put("x", OBJECT[::-1])

    threading.Thread(target=replace, daemon=True).start()
    with pytest.raises(DamagedError, match=r"/x: replaced"):
        store.get("x")


def test_requests_are_retried_while_the_server_is_down(direct: Store, proxied) -> None:
    direct.put("x", OBJECT)
    proxy, store = proxied(direct, Faults())
    proxy.stop()
    threading.Timer(3.0, proxy.start).start()
    assert store.get("x") == OBJECT
    assert store.traffic.retries > 0


def test_an_unreachable_server_is_an_error_naming_the_url_after_the_limit(direct: Store, proxied) -> None:
    proxy, store = proxied(direct, Faults(), Retry(limit_s=2, stall_s=1))
    proxy.stop()
    before = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"s3://.*/data/x: .*retried for 2 s"):
        store.get("x")
    assert time.monotonic() - before >= 2


def test_batches_are_the_same_through_faults_and_corrupt_bytes(direct: Store, proxied) -> None:
    """The crc32 of a sample detects a corrupt byte; the sample is then read again."""
    plain = write_dataset(direct, train=43)
    proxy, store = proxied(direct, Faults(seed=2, share=0.5, kinds=("cut", "corrupt"), in_a_row=1))
    plan = Plan(shard_sizes=tuple(s.num_samples for s in plain.index.splits["train"].shards), batch_size=4, seed=1)

    def read(dataset: Dataset) -> list:
        stream = batches(dataset, plan, range(4), DataRecipe(batch_size=4, crop=24), 0, 2, BadSamples(0, 43))
        return [
            (b.positions, b.sharp.numpy().tobytes(), b.blurred.numpy().tobytes())
            for b, _ in zip(stream, range(25), strict=False)
        ]

    assert read(Dataset(store, plain.index)) == read(plain)
    assert proxy.injected["corrupt"] > 0


def test_a_process_killed_during_an_upload_leaves_the_previous_checkpoint(
    direct: Store, proxied, s3_server: dict[str, str], tmp_path: Path
) -> None:
    before = Checkpoints(direct)
    before.save(8, {"state.pt": b"state 8"})
    before.wait()
    # The second part gets no response: the process is killed during its upload.
    proxy, _ = proxied(direct, Faults(share=1.0, kinds=("stall",), in_a_row=10**6, match="state.pt"))
    script = f"""
        import os
        from cluster.storage.checkpoints import Checkpoints
        from cluster.storage import open_store
        checkpoints = Checkpoints(open_store({direct.url!r}))
        checkpoints.save(16, {{"recipe.json": b"{{}}", "state.pt": os.urandom(20_000_000)}})
        print("uploading", flush=True)
        checkpoints.wait()
    """
    environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    while not proxy.injected["stall"]:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    after = Checkpoints(direct)
    found = after.newest()
    assert found is not None
    assert found[0].images_seen == 8
    after.save(24, {"state.pt": b"state 24"})
    after.wait()
    assert not [key for key in direct.list() if "000000000016" in key], "the next save deletes the rest"
