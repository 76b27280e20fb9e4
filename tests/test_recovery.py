"""Whole runs on a real cluster of several nodes that lose a rank, a node, a link, the driver or the storage.

Nodes are in network namespaces where this machine permits them. Whatever happens, the positions that committed updates
consumed are those of the plan, each once, and with the same ranks the weights are those of an undisturbed run.
"""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fault_proxy import FaultProxy, Plan
from benchmarks.recorded import account, read_record
from benchmarks.recovery import DRAIN_S, Bench, run_with_fault
from cluster.local import LocalCluster
from cluster.storage import join, open_store
from cluster.sync import Rank, Sync
from deblur.train import parse
from deblur.training.job import prepare
from deblur.training.loop import fit
from deblur.training.metrics import run_metrics
from deblur.training.run import ReadOnlyRun
from tests.clusters import ISOLATED, two_nodes
from tests.datasets import write_dataset
from tests.ranks import run_ranks

UPDATES = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with two_nodes(DRAIN_S) as started:
        yield started


@pytest.fixture(scope="module")
def bench(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("recovery")
    bench = Bench(cluster, write_dataset(open_store(folder / "data"), train=43), folder, UPDATES)
    # Undisturbed, and without Ray: two processes that talk through gloo.
    run_ranks(undisturbed_rank, 2, folder / "ranks", bench.flags, str(folder / "undisturbed"))
    bench.undisturbed = bench.generator("undisturbed")
    return bench


def undisturbed_rank(rank: Rank, flags: list[str], run: str) -> None:
    folder, _, name = run.rpartition("/")
    job = prepare(replace(parse(flags), runs=folder, run=name))
    files = job.run if rank.rank == 0 else ReadOnlyRun(run)
    fit(job.config, rank, Sync(), files, run_metrics(name, str(rank.rank)))


def check(bench: Bench, fault: str, seed: int = 0, *, ranks: tuple[int, ...] = (2, 2)) -> int:
    """A run with a fault keeps its promises; the updates that it lost."""
    outcome = run_with_fault(bench, fault, seed)
    print(outcome)
    assert outcome.account.ids_lost == outcome.account.ids_repeated == 0
    assert outcome.num_ranks == ranks
    assert outcome.same_weights is (True if set(ranks) == {2} else None)
    return outcome.account.updates_lost


def test_a_rank_is_killed_and_later_a_node_is_taken_with_a_notice(bench: Bench) -> None:
    job = bench.submit("both")
    start = bench.wait_for_update("both", job, UPDATES // 8)
    os.kill(start.pids[1], signal.SIGKILL)
    while len(read_record(bench.record("both"))) < 2:
        assert bench.is_running(job), bench.log(job)
        time.sleep(0.1)
    bench.cluster.nodes.pop(0).terminate()
    bench.cluster.add_node()
    log = bench.wait(job)
    assert "restarting from " in log
    assert "node preemption: checkpointed at" in log
    starts = read_record(bench.record("both"))
    assert [start.num_ranks for start in starts] == [2, 2, 2]
    counted = account(starts, bench.plan, bench.total)
    assert counted.ids_lost == counted.ids_repeated == 0
    assert starts[2].begin == starts[1].end + bench.plan.batch_size, "with the notice not one update is lost"
    assert bench.generator("both") == bench.undisturbed


@pytest.mark.soak
def test_a_node_is_taken_with_a_notice_and_not_one_update_is_lost(bench: Bench) -> None:
    assert check(bench, "preemption") == 0


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.long if seed else pytest.mark.soak) for seed in range(5)]
)
def test_a_rank_is_killed_at_any_update(bench: Bench, seed: int) -> None:
    check(bench, "worker", seed)


@pytest.mark.soak
def test_a_node_is_killed_and_another_comes(bench: Bench) -> None:
    check(bench, "node")


@pytest.mark.soak
def test_the_link_of_a_node_is_cut_and_another_comes(bench: Bench) -> None:
    if not ISOLATED:
        pytest.skip("no network namespaces here: the link of a node cannot be cut")
    check(bench, "link")


@pytest.mark.soak
def test_a_node_is_lost_for_good_and_the_run_ends_on_the_other(bench: Bench) -> None:
    check(bench, "elastic", ranks=(2, 1))


@pytest.mark.soak
def test_a_node_comes_back_and_is_taken_up_without_loss(bench: Bench) -> None:
    node = bench.cluster.nodes.pop()
    node.kill()
    job = bench.submit("grows", "--min-nodes", "1")
    bench.wait_for_update("grows", job, UPDATES // 8)
    bench.cluster.add_node()
    assert "scaling up to more nodes: checkpointed at" in bench.wait(job)
    starts = read_record(bench.record("grows"))
    assert [start.num_ranks for start in starts] == [1, 2]
    counted = account(starts, bench.plan, bench.total)
    assert counted.ids_lost == counted.ids_repeated == counted.updates_lost == 0


@pytest.mark.soak
def test_the_driver_is_killed_and_the_same_command_goes_on(bench: Bench) -> None:
    check(bench, "driver")


@pytest.mark.soak
def test_a_second_writer_is_refused_and_the_first_undisturbed(bench: Bench) -> None:
    first = bench.submit("two-writers")
    bench.wait_for_update("two-writers", first, UPDATES // 8)
    log = bench.wait(bench.submit("two-writers"), "FAILED")
    assert "is writing this run" in log
    bench.wait(first)
    assert len(read_record(bench.record("two-writers"))) == 1
    assert bench.generator("two-writers") == bench.undisturbed


# ---- storage that fails, between the nodes and a bucket


@pytest.fixture
def proxy(s3_server: dict[str, str], cluster: LocalCluster) -> Iterator[FaultProxy]:
    """Without faults, on the address at which the nodes reach this machine."""
    with FaultProxy(s3_server["AWS_ENDPOINT_URL"], Plan(), cluster.gateway) as started:
        yield started


def on_bucket(bench: Bench, bucket: str, s3_server: dict[str, str], proxy: FaultProxy, tmp_path: Path) -> Bench:
    """The same dataset and runs on a bucket, which the nodes reach through the proxy."""
    dataset = write_dataset(open_store(join(bucket, "data")), train=43)
    assert dataset.index.digest == bench.dataset.index.digest
    remote = Bench(bench.cluster, dataset, tmp_path, UPDATES)
    remote.environment = s3_server | {"AWS_ENDPOINT_URL": proxy.url, "DEBLUR_RUNS": join(bucket, "runs")}
    return remote


@pytest.mark.soak
def test_one_request_in_twenty_fails_and_the_weights_are_the_same(
    bench: Bench, bucket: str, s3_server: dict[str, str], cluster: LocalCluster, tmp_path: Path
) -> None:
    with FaultProxy(s3_server["AWS_ENDPOINT_URL"], Plan(seed=1, share=0.05), cluster.gateway) as proxy:
        remote = on_bucket(bench, bucket, s3_server, proxy, tmp_path)
        remote.wait(remote.submit("faulty"))
        assert sum(proxy.injected.values()) > 5
    assert remote.generator("faulty") == bench.undisturbed
    assert remote.run("faulty").read_metrics()[-1]["storage_retries"] > 0
    assert len(read_record(remote.record("faulty"))) == 1


@pytest.mark.soak
def test_storage_is_gone_for_twenty_seconds_and_training_waits(
    bench: Bench, bucket: str, s3_server: dict[str, str], proxy: FaultProxy, tmp_path: Path
) -> None:
    remote = on_bucket(bench, bucket, s3_server, proxy, tmp_path)
    job = remote.submit("outage")
    remote.wait_for_update("outage", job, UPDATES // 4)
    proxy.stop()
    threading.Timer(20, proxy.start).start()
    remote.wait(job)
    (start,) = read_record(remote.record("outage"))
    times = [line["time"] for line in start.lines]
    assert max(after - before for before, after in itertools.pairwise(times)) > 10, "it has waited"
    assert remote.generator("outage") == bench.undisturbed


@pytest.mark.long
def test_storage_is_gone_for_longer_than_the_limit_and_the_run_goes_on_when_it_is_back(
    bench: Bench, bucket: str, s3_server: dict[str, str], proxy: FaultProxy, tmp_path: Path
) -> None:
    remote = on_bucket(bench, bucket, s3_server, proxy, tmp_path)
    job = remote.submit("gone", "--storage-wait-s", "5")
    remote.wait_for_update("gone", job, UPDATES // 4)
    proxy.stop()
    before = time.monotonic()
    log = remote.wait(job, "FAILED")
    last = log.strip().splitlines()[-1]
    assert "retried for 5 s" in log, last
    assert "error: s3://" in log
    print(f"ended {time.monotonic() - before:.0f} s after the storage was gone")
    proxy.start()
    remote.wait(remote.submit("gone", "--storage-wait-s", "5"))
    assert remote.generator("gone") == bench.undisturbed
    counted = account(read_record(remote.record("gone")), remote.plan, remote.total)
    assert counted.ids_lost == counted.ids_repeated == 0
