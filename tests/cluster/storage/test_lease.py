"""One writer per run, on folders and buckets, with holders that are really killed."""

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
    """Another process that holds the lease until it is killed, and that lease."""
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


def test_a_second_writer_is_refused_and_the_first_undisturbed(store: Store) -> None:
    first, its_lease = holder(store.url)
    try:
        refusal = pytest.raises(InputError, match=rf"process {first.pid}\) is writing this run.*another --run")
        with refusal, acquire_lease(store.url, EXPIRY_S):
            pass
        check_lease(store, its_lease)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_after_a_holder_that_ended_by_itself_nobody_waits(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in (1, 2, 3):
        with acquire_lease(store.url, expiry_s=600) as mine:
            assert mine.lease.token == expected
    assert not capsys.readouterr().out
    assert len(store.list("lease/")) == 1


def test_after_a_holder_that_was_killed_the_next_waits_for_a_sign_of_life(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = holder(store.url)
    first.kill()
    first.wait()
    before = time.monotonic()
    with acquire_lease(store.url, EXPIRY_S) as mine:
        assert mine.lease.token == 2
        assert time.monotonic() - before >= EXPIRY_S
    assert f"process {first.pid}) was writing this run; waiting" in capsys.readouterr().out


def test_a_holder_that_slept_cannot_commit_any_more(store: Store) -> None:
    first, its_lease = holder(store.url)
    try:
        os.kill(first.pid, signal.SIGSTOP)  # a machine that hangs, or a network that is cut
        with acquire_lease(store.url, EXPIRY_S) as mine:
            os.kill(first.pid, signal.SIGCONT)
            time.sleep(EXPIRY_S)  # it beats again, and disturbs nobody
            check_lease(store, mine.lease)
            late = Checkpoints(store, may_commit=lambda: check_lease(store, its_lease))
            late.save(8, {"state.pt": b"of the past"})
            with pytest.raises(InputError, match="another start has taken this run over"):
                late.wait()
            assert not late.list()
    finally:
        first.kill()
        first.wait()


def test_of_two_that_were_told_they_created_it_the_one_who_wrote_last_holds(tmp_path: Path) -> None:
    """As on OpenStack Swift, which looks before it writes; here the second write comes after the first had looked."""
    store = open_store(tmp_path)
    with acquire_lease(store.url, EXPIRY_S) as first:
        other = json.loads(store.get("lease/000001")) | {"id": "another"}
        store.put("lease/000001", json.dumps(other).encode())
        with pytest.raises(InputError, match="another start has taken this run over"):
            check_lease(store, first.lease)
        time.sleep(EXPIRY_S)
        assert json.loads(store.get("lease/000001")) == other, "no beat of the first disturbs the second"
    assert json.loads(store.get("lease/000001")) == other, "nor its end"


def test_a_group_of_ranks_that_was_given_up_cannot_commit_any_more(store: Store) -> None:
    """It may run on where its driver does not reach it, and the store does."""
    with acquire_lease(store.url, EXPIRY_S) as holder:
        old, new = holder.renew(), holder.renew()
        check_lease(store, new)
        late = Checkpoints(store, may_commit=lambda: check_lease(store, old))
        Checkpoints(store, may_commit=lambda: check_lease(store, new)).save(8, {"state.pt": b"of the new group"})
        time.sleep(EXPIRY_S)  # some beats
        check_lease(store, new)
        late.save(8, {"state.pt": b"of the old group"})
        with pytest.raises(InputError, match="another start has taken this run over"):
            late.wait()
    found = Checkpoints(store).newest()
    assert found is not None
    assert found[1]["state.pt"] == b"of the new group"


@pytest.mark.parametrize("dead_before", [False, True])
def test_of_many_starts_one_holds(store: Store, dead_before: bool) -> None:
    if dead_before:
        first, _ = holder(store.url)
        first.kill()
        first.wait()
    inside, most, lock, done = 0, 0, threading.Lock(), threading.Barrier(6)

    def start(_: int) -> bool:
        nonlocal inside, most
        try:
            with acquire_lease(store.url, EXPIRY_S):
                with lock:
                    inside += 1
                    most = max(most, inside)
                done.wait(60)  # until the others have been refused
                with lock:
                    inside -= 1
            return True
        except InputError:
            done.wait(60)
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(start, range(6))) == [False] * 5 + [True]
    assert most == 1
