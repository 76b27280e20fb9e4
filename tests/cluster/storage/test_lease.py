"""One writer per run, on folders and buckets, with real processes that are killed or suspended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from cluster.errors import InputError
from cluster.storage import Store, join, open_store
from cluster.storage.checkpoints import Checkpoints
from cluster.storage.lease import Lease, acquire_lease, check_lease

EXPIRY_S = 1.5


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path if request.param == "folder" else join(request.getfixturevalue("bucket"), "run"))


def holder(url: str) -> tuple[subprocess.Popen[str], Lease]:
    """A process that holds the lease until it is killed, and its lease."""
    script = f"""
        import time
        from cluster.storage.lease import acquire_lease
        with acquire_lease({url!r}, {EXPIRY_S}) as mine:
            print("held", mine.lease.token, mine.lease.holder, flush=True)
            time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    _, number, name = process.stdout.readline().split()
    return process, Lease(int(number), name)


def test_a_second_writer_is_refused_while_the_first_is_alive(store: Store) -> None:
    first, its_lease = holder(store.url)
    try:
        refusal = pytest.raises(InputError, match=rf"process {first.pid} on .*--run")
        with refusal, acquire_lease(store.url, EXPIRY_S):
            pass
        check_lease(store, its_lease)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_names_that_are_no_tokens_are_passed_over(store: Store) -> None:
    for name in ("٣", "²", "x", "1.tmp"):
        store.put(f"lease/{name}", b"{}")
    with acquire_lease(store.url, 1.0) as holder:
        assert holder.lease.token == 1


def test_a_released_lease_is_taken_over_without_waiting(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in (1, 2, 3):
        with acquire_lease(store.url, expiry_s=600) as mine:
            assert mine.lease.token == expected
    assert not capsys.readouterr().out
    assert {key.partition(".")[0] for key in store.list("lease/")} == {"lease/000003"}


def test_the_lease_of_a_killed_holder_is_taken_over_after_its_expiry(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = holder(store.url)
    first.kill()
    first.wait()
    before = time.monotonic()
    with acquire_lease(store.url, EXPIRY_S) as mine:
        assert mine.lease.token == 2
        assert time.monotonic() - before >= EXPIRY_S
    assert f"process {first.pid} on " in capsys.readouterr().out


def test_a_suspended_holder_cannot_commit_after_a_takeover(store: Store) -> None:
    first, its_lease = holder(store.url)
    try:
        os.kill(first.pid, signal.SIGSTOP)  # a machine that hangs, or a network that is cut
        with acquire_lease(store.url, EXPIRY_S) as mine:
            os.kill(first.pid, signal.SIGCONT)
            time.sleep(EXPIRY_S)  # its heartbeats resume, without effect
            check_lease(store, mine.lease)
            late = Checkpoints(store, may_commit=lambda: check_lease(store, its_lease))
            late.save(8, {"state.pt": b"of the past"})
            with pytest.raises(InputError, match="lease lost"):
                late.wait()
            assert not late.list()
    finally:
        first.kill()
        first.wait()


def test_of_two_processes_that_created_the_same_token_the_last_writer_holds_it(tmp_path: Path) -> None:
    """As on OpenStack Swift, which checks before it writes; here the second write comes after the first's check."""
    store = open_store(tmp_path)
    with acquire_lease(store.url, EXPIRY_S) as first:
        other = json.loads(store.get("lease/000001")) | {"id": "another"}
        store.put("lease/000001", json.dumps(other).encode())
        with pytest.raises(InputError, match="lease lost"):
            check_lease(store, first.lease)
        time.sleep(EXPIRY_S)
        assert json.loads(store.get("lease/000001")) == other, "overwritten by a heartbeat of the first"
    assert json.loads(store.get("lease/000001")) == other, "overwritten by the release of the first"


def test_an_earlier_group_of_workers_cannot_commit_after_renewal(store: Store) -> None:
    """It may still run on a node that the driver cannot reach, but the store can."""
    with acquire_lease(store.url, EXPIRY_S) as holder:
        old, new = holder.renew(), holder.renew()
        check_lease(store, new)
        late = Checkpoints(store, may_commit=lambda: check_lease(store, old))
        Checkpoints(store, may_commit=lambda: check_lease(store, new)).save(8, {"state.pt": b"of the new group"})
        time.sleep(EXPIRY_S)  # some heartbeats
        check_lease(store, new)
        late.save(8, {"state.pt": b"of the old group"})
        with pytest.raises(InputError, match="lease lost"):
            late.wait()
    found = Checkpoints(store).newest()
    assert found is not None
    assert found[1]["state.pt"] == b"of the new group"


def test_a_token_that_was_taken_over_cannot_be_renewed(store: Store) -> None:
    """A holder may be suspended in the middle of `renew`, until two takeovers later its next token is free again."""
    with acquire_lease(store.url, EXPIRY_S) as suspended:
        create = store.create

        def create_late(key: str, data: bytes) -> bool:
            store.put("lease/000003", json.dumps({"id": "another"}).encode())
            store.delete("lease/000001")
            return create(key, data)

        with mock.patch.object(suspended, "_store", mock.Mock(wraps=store, url=store.url)) as late:
            late.create.side_effect = create_late
            with pytest.raises(InputError, match="lease lost"):
                suspended.renew()
    assert json.loads(store.get("lease/000003")) == {"id": "another"}


def test_checking_a_lease_is_one_request(tmp_path: Path) -> None:
    with acquire_lease(str(tmp_path), EXPIRY_S) as mine:
        store = mock.Mock(wraps=open_store(tmp_path))
        check_lease(store, mine.lease)
    assert len(store.method_calls) == 1


def test_a_lease_of_version_0_1_is_taken_over(tmp_path: Path) -> None:
    """It has its state in the token's object."""
    store = open_store(tmp_path)
    old = {"id": "old", "host": "h", "pid": 1, "beat": 7, "released": True}
    store.put("lease/000041", json.dumps(old).encode())
    with acquire_lease(store.url, expiry_s=600) as mine:
        assert mine.lease.token == 42


@pytest.mark.parametrize("after_a_killed_holder", [False, True])
def test_of_concurrent_processes_exactly_one_acquires_the_lease(store: Store, after_a_killed_holder: bool) -> None:
    if after_a_killed_holder:
        first, _ = holder(store.url)
        first.kill()
        first.wait()
    inside, most, lock, done = 0, 0, threading.Lock(), threading.Barrier(6)

    def run(_: int) -> bool:
        """Whether it could commit once all had tried."""
        nonlocal inside, most
        expiry_s = EXPIRY_S if after_a_killed_holder else 4 * EXPIRY_S  # no holder is killed, so none is waited for
        with contextlib.ExitStack() as stack:
            try:
                mine = stack.enter_context(acquire_lease(store.url, expiry_s))
            except InputError:
                done.wait(60)
                return False
            with lock:
                inside += 1
                most = max(most, inside)
            done.wait(60)
            with lock:
                inside -= 1
            try:
                check_lease(store, mine.lease)
            except InputError:
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(run, range(6))) == [False] * 5 + [True]
    # moto's create-if-absent is not atomic: on a busy machine a second write may land after the pause, and then the
    # first process must find that it cannot commit.
    assert most == 1 or store.url.startswith("s3://")
