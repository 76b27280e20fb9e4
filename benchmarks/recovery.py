"""Injects faults into training runs on two nodes of a local cluster, and measures the time and work lost.

python -m benchmarks.recovery --json       all faults; nodes get network namespaces where permitted
python -m benchmarks.recovery --faults worker node
"""

import json
import os
import random
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from ray.job_submission import JobSubmissionClient

from benchmarks.machine import machine
from benchmarks.recorded import Account, WorkerGroup, account, read_record
from cluster.local import LocalCluster, local_cluster
from cluster.local import Settings as ClusterSettings
from cluster.rehearsal.network import can_isolate
from cluster.storage import join, open_store
from deblur.data.dataset import Dataset, open_dataset
from deblur.data.packing import pack_samples
from deblur.train import parse
from deblur.training.loop import plan_of, total_images
from deblur.training.run import Run

# The smallest run that is still the paper's: penalty, several critic steps, InstanceNorm, dropout.
RECIPE = shlex.split("""
    --recipe paper --batch-size 4 --crop 24 --generator.filters 4 --generator.blocks 1 --critic.filters 4
    --critic.layers 2 --critic-updates 2 --features vgg16-block1_conv1 --feature-weights random --precision float32
    --validate-images 100000 --checkpoint-s 2
""")
PACE_S = 0.05
DRAIN_S = 10
WAIT_S = 300.0
# With it an unreachable node is declared dead after seconds instead of Ray's minute.
HEALTH_CHECK = {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "3"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    faults: tuple[str, ...] = ()
    """Any of worker, node, link, preemption, driver, elastic; default all."""
    updates: int = 400
    """Length of each run."""
    seed: int = 0
    """Picks the update at which the fault is injected, and the rank or node that it hits."""
    json: bool = False
    """Print one line of JSON at the end."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The cost of a fault."""

    fault: str
    seconds_to_next_update: float
    """From the fault to the first update of the next worker group."""
    seconds_without_updates: float
    """From the last update of the group before the fault to the first of the group after it."""
    account: Account
    num_ranks: tuple[int, ...]
    """World size of each group."""
    same_weights: bool | None
    """Whether the weights equal those of the undisturbed run bit for bit; None if the world size changed."""


class Bench:
    """A cluster of two nodes, a dataset, and its runs."""

    def __init__(self, cluster: LocalCluster, dataset: Dataset, folder: Path, updates: int = 400) -> None:
        self.cluster, self.dataset, self.folder = cluster, dataset, folder
        self.flags = [*RECIPE, "--images", str(4 * updates), "--data", dataset.store.url]
        self.environment: dict[str, str] = {}
        recipe = parse(self.flags).recipe
        self.plan = plan_of(recipe, dataset.index)
        self.total = total_images(recipe, self.plan)
        self._jobs = JobSubmissionClient(cluster.jobs)
        self.undisturbed: bytes | None = None  # the generator of the run without a fault, once it has finished

    def record(self, run: str) -> Path:
        """The folder in which the ranks of a run record the samples they consume."""
        folder = self.folder / f"{run}.record"
        folder.mkdir(exist_ok=True)
        return folder

    def submit(self, run: str, *more: str) -> str:
        """Starts or resumes a run; returns its job id."""
        runs = self.environment.get("DEBLUR_RUNS", str(self.folder))
        flags = [*self.flags, "--runs", runs, "--run", run, "--nodes", "2", *more]
        record = {"RECORD": str(self.record(run)), "PACE_S": str(PACE_S)}
        environment = self.environment | record
        return self._jobs.submit_job(
            entrypoint=f"python -m benchmarks.recorded {' '.join(flags)}", runtime_env={"env_vars": environment}
        )

    def is_running(self, job: str) -> bool:
        return not self._jobs.get_job_status(job).is_terminal()

    def succeeded(self, job: str) -> bool:
        return self._jobs.get_job_status(job) == "SUCCEEDED"

    def log(self, job: str) -> str:
        return self._jobs.get_job_logs(job)

    def wait(self, job: str, status: str = "SUCCEEDED") -> str:
        """Waits until a job has ended with `status`; returns its log."""
        _wait_until(lambda: not self.is_running(job), lambda: self.log(job))
        if (ended := self._jobs.get_job_status(job)) != status:
            raise RuntimeError(f"expected the job to end as {status}, got {ended}:\n{self.log(job)}")
        return self.log(job)

    def wait_for_update(self, run: str, job: str, update: int) -> WorkerGroup:
        """Waits until a worker group has begun `update` and a checkpoint exists; returns that group."""

        def reached() -> bool:
            groups = read_record(self.record(run))
            begun = bool(groups) and groups[-1].end >= update * self.plan.batch_size
            if not begun and not self.is_running(job):
                raise RuntimeError(f"the job ended before update {update}:\n{self.log(job)}")
            return begun and self.run(run).images_seen() > 0

        _wait_until(reached, lambda: self.log(job))
        return read_record(self.record(run))[-1]

    def run(self, name: str) -> Run:
        return Run(join(self.environment.get("DEBLUR_RUNS", str(self.folder)), name))

    def generator(self, run: str) -> bytes:
        """The file of the finished generator."""
        checkpoints = self.run(run).checkpoints
        newest = checkpoints.list()[-1]
        if newest.images_seen != self.total:
            raise RuntimeError(f"{run}: ended at {newest.images_seen} of {self.total} images")
        return checkpoints.load_part(newest, "generator.safetensors")

    def outcome(self, run: str, fault: str, at: float) -> Outcome:
        """Measures what a fault at time `at` did to a finished run."""
        groups = read_record(self.record(run))
        after = next(nth for nth, group in enumerate(groups) if group.lines[0]["time"] > at)
        resumed = groups[after].lines[0]["time"]
        ranks = tuple(group.num_ranks for group in groups)
        return Outcome(
            fault=fault,
            seconds_to_next_update=round(resumed - at, 1),
            seconds_without_updates=round(resumed - groups[after - 1].lines[-1]["time"], 1),
            account=account(groups, self.plan, self.total),
            num_ranks=ranks,
            same_weights=self.generator(run) == self.undisturbed if set(ranks) == {2} else None,
        )


# ---- faults: each starts a run, injects one fault, waits for the end, and returns the time of the fault


def kill_worker(bench: Bench, run: str, draw: random.Random) -> float:
    """SIGKILL to one rank."""
    job = bench.submit(run)
    group = bench.wait_for_update(run, job, _some_update(bench, draw))
    at = time.time()
    os.kill(draw.choice(group.pids), signal.SIGKILL)
    bench.wait(job)
    return at


def kill_node(bench: Bench, run: str, draw: random.Random) -> float:
    """SIGKILL to every process of a node, which is replaced."""
    return _lose_node(bench, run, draw, lambda node: node.kill())


def cut_link(bench: Bench, run: str, draw: random.Random) -> float:
    """Cuts the network link of a node, which is replaced."""
    return _lose_node(bench, run, draw, lambda node: node.cut())


def preempt_node(bench: Bench, run: str, draw: random.Random) -> float:
    """SIGTERM to `ray start --block`, as on a spot preemption; the node is replaced."""
    return _lose_node(bench, run, draw, lambda node: node.terminate())


def _lose_node(bench: Bench, run: str, draw: random.Random, lose: Callable[[Any], None]) -> float:
    job = bench.submit(run)
    bench.wait_for_update(run, job, _some_update(bench, draw))
    node = draw.choice(bench.cluster.nodes)
    at = time.time()
    lose(node)
    bench.cluster.add_node()
    bench.wait(job)
    node.kill()
    bench.cluster.nodes.remove(node)
    return at


def kill_driver(bench: Bench, run: str, draw: random.Random) -> float:
    """SIGKILL to the driver, which is then restarted with the same command."""
    job = bench.submit(run)
    bench.wait_for_update(run, job, _some_update(bench, draw))
    at = time.time()
    os.kill(int((bench.record(run) / "driver.pid").read_text()), signal.SIGKILL)
    bench.wait(job, "FAILED")
    bench.wait(bench.submit(run))
    return at


def lose_node_for_good(bench: Bench, run: str, draw: random.Random) -> float:
    """SIGKILL to every process of a node, which is not replaced: the run continues with --min-nodes 1."""
    job = bench.submit(run, "--min-nodes", "1")
    bench.wait_for_update(run, job, _some_update(bench, draw))
    node = draw.choice(bench.cluster.nodes)
    at = time.time()
    node.kill()
    bench.cluster.nodes.remove(node)
    bench.wait(job)
    bench.cluster.add_node()
    return at


def _some_update(bench: Bench, draw: random.Random) -> int:
    """An update in the second quarter: after a checkpoint, and early enough for a preemption notice to take effect."""
    updates = bench.total // bench.plan.batch_size
    return draw.randrange(updates // 4, updates // 2)


FAULTS = {
    "worker": kill_worker,
    "node": kill_node,
    "link": cut_link,
    "preemption": preempt_node,
    "driver": kill_driver,
    "elastic": lose_node_for_good,
}


def run_with_fault(bench: Bench, fault: str, seed: int) -> Outcome:
    """Runs a training into which one fault is injected."""
    run = f"{fault}-{seed}"
    return bench.outcome(run, fault, FAULTS[fault](bench, run, random.Random(f"{fault} {seed}")))


@contextmanager
def two_nodes(updates: int = 400) -> Iterator[Bench]:
    """A bench on a new cluster, with network namespaces where permitted."""
    settings = ClusterSettings(nodes=2, isolated=can_isolate(), drain_s=DRAIN_S)
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder, local_cluster(settings) as cluster:
        data = open_store(join(folder, "data"))
        pack_samples(data)
        yield Bench(cluster, open_dataset(data.url), Path(folder), updates)


def _wait_until(condition: Callable[[], bool], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {WAIT_S:.0f} s; log of the job:\n{log()}")
        time.sleep(0.1)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m benchmarks.recovery")
    isolated = can_isolate()
    faults = settings.faults or tuple(fault for fault in FAULTS if fault != "link" or isolated)
    outcomes = []
    with two_nodes(settings.updates) as bench:
        bench.wait(bench.submit("undisturbed"))
        bench.undisturbed = bench.generator("undisturbed")
        for fault in faults:
            outcomes.append(run_with_fault(bench, fault, settings.seed))
            print(_line(outcomes[-1]), flush=True)
    if settings.json:
        result = {"benchmark": "recovery", "machine": machine(), "settings": asdict(settings), "isolated": isolated}
        print(json.dumps(result | {"faults": [asdict(outcome) for outcome in outcomes]}))


def _line(outcome: Outcome) -> str:
    kept = {True: "same weights", False: "OTHER WEIGHTS", None: f"ranks {outcome.num_ranks}"}[outcome.same_weights]
    lost = outcome.account
    return (
        f"{outcome.fault:<11} {outcome.seconds_to_next_update:5.1f} s to the next update "
        f"({outcome.seconds_without_updates:.1f} s without), {lost.updates_lost} updates lost, ids: {lost.ids_lost} "
        f"lost, {lost.ids_repeated} repeated; {kept}"
    )


if __name__ == "__main__":
    main()
