"""Injects random faults into training runs on two nodes and a bucket, and counts what the runs lose or repeat.

python -m benchmarks.chaos --seeds 20     needs root for network namespaces; without them links are not cut

Each seed is a plan of one to three faults at random updates. A run that ends with an error is started again by the same
command, as an operator would. At its end every sample must have been used once per epoch, the weights must be those of
an undisturbed run bit for bit, and each end before that must have named its cause in its last line, after "error:".
Not among the faults: full disks, slow links and steps of the clock.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

import boto3
import tyro

from benchmarks.fault_proxy import FaultProxy, Plan
from benchmarks.machine import machine
from benchmarks.recorded import WorkerGroup, account, read_record
from benchmarks.recovery import DRAIN_S, HEALTH_CHECK, Bench
from benchmarks.s3_server import s3_server
from cluster.local import LocalCluster, Node, find_processes, local_cluster
from cluster.local import Settings as ClusterSettings
from cluster.rehearsal.network import can_isolate
from cluster.storage import join, open_store
from deblur.data.dataset import open_dataset
from deblur.data.packing import pack_samples

BUCKET = "chaos"
MAX_FAULTS = 3
MAX_STARTS = 12  # of one run: a run that fails more often does not recover
END_S = 400.0  # without an update: the run hangs


@dataclass(frozen=True, kw_only=True)
class Settings:
    seeds: int = 10
    """Number of runs."""
    first_seed: int = 0
    """Seed of the first run."""
    updates: int = 200
    """Length of each run."""
    pause_s: tuple[float, float] = (30.0, 90.0)
    """Shortest and longest time for which processes are stopped or storage refuses."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a plan."""

    kind: str
    update: int
    """The update after which it is injected."""
    seconds: float
    """How long it lasts, if it is one that ends."""


@dataclass
class Scene:
    """A run and what faults act on."""

    bench: Bench
    proxy: FaultProxy
    run: str
    draw: random.Random
    job: str = ""
    unexplained: list[str] = field(default_factory=list)
    """Last lines of ends that did not name their cause."""
    retired: list[Node] = field(default_factory=list)
    """Nodes that were replaced and may still have processes."""

    def start(self) -> None:
        """The command, for the first time or again."""
        self.job = self.bench.submit(self.run)

    def check_end(self, job: str) -> None:
        """Records a job that has failed without naming its cause."""
        last = self.bench.log(job).strip().rpartition("\n")[2]
        if not self.bench.succeeded(job) and "error: " not in last:
            self.unexplained.append(last)

    def group(self) -> WorkerGroup:
        """The newest worker group."""
        return read_record(self.bench.record(self.run))[-1]

    def replace_node(self, lose: Callable[[Node], None]) -> Node:
        """Loses a random node in this way; another one joins."""
        node = self.draw.choice(self.bench.cluster.nodes)
        self.bench.cluster.nodes.remove(node)
        self.retired.append(node)
        lose(node)
        self.bench.cluster.add_node()
        return node


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of the run of a seed."""

    seed: int
    faults: tuple[Fault, ...]
    starts: int
    """Times that the command was started."""
    ids_lost: int
    ids_repeated: int
    same_weights: bool
    unexplained: tuple[str, ...]
    """Last lines of ends that did not name their cause."""
    gaps_s: tuple[float, ...]
    """For each fault the longest time without an update until the next fault."""

    @property
    def kept_promises(self) -> bool:
        return self.ids_lost == self.ids_repeated == 0 and self.same_weights and not self.unexplained


# ---- faults


def kill_rank(scene: Scene, fault: Fault) -> None:
    """SIGKILL to one rank."""
    _signal([scene.draw.choice(scene.group().pids)], signal.SIGKILL)


def pause_rank(scene: Scene, fault: Fault) -> None:
    """SIGSTOP to one rank, and later SIGCONT."""
    _pause([scene.draw.choice(scene.group().pids)], fault)


def pause_node(scene: Scene, fault: Fault) -> None:
    """SIGSTOP to all processes of a node that is replaced; after SIGCONT its rank must commit nothing."""
    stopped: list[int] = []

    def stop(node: Node) -> None:
        stopped.extend(find_processes(node.name))
        _signal(stopped, signal.SIGSTOP)

    scene.replace_node(stop)
    time.sleep(fault.seconds)
    _signal(stopped, signal.SIGCONT)


def pause_driver(scene: Scene, fault: Fault) -> None:
    """SIGSTOP to the driver, and later SIGCONT."""
    _pause([_driver(scene)], fault)


def kill_node(scene: Scene, fault: Fault) -> None:
    """SIGKILL to all processes of a node, which is replaced."""
    scene.replace_node(lambda node: node.kill())


def preempt_node(scene: Scene, fault: Fault) -> None:
    """SIGTERM to `ray start --block`, as a spot preemption; the node is replaced."""
    scene.replace_node(lambda node: node.terminate())


def cut_link(scene: Scene, fault: Fault) -> None:
    """Cuts the link of a node, which is replaced."""
    scene.replace_node(lambda node: node.cut())


def kill_driver(scene: Scene, fault: Fault) -> None:
    """SIGKILL to the driver; then the command is started twice at once, of which one must be refused."""
    _signal([_driver(scene)], signal.SIGKILL)
    while scene.bench.is_running(scene.job):
        time.sleep(0.1)
    both = [scene.bench.submit(scene.run) for _ in range(2)]
    while all(map(scene.bench.is_running, both)):
        time.sleep(0.1)
    scene.job, refused = sorted(both, key=scene.bench.is_running, reverse=True)
    if scene.bench.succeeded(refused):
        scene.unexplained.append("two drivers wrote the run at once")
    scene.check_end(refused)


def refuse_requests(kinds: Sequence[str], share: float, in_a_row: int = 1_000_000) -> Callable[[Scene, Fault], None]:
    """The storage fails in these ways for a while."""

    def refuse(scene: Scene, fault: Fault) -> None:
        before = scene.proxy.plan
        scene.proxy.plan = Plan(
            seed=fault.update, share=share, kinds=tuple(kinds), in_a_row=in_a_row, stall_s=fault.seconds / 10
        )
        time.sleep(fault.seconds)
        scene.proxy.plan = before

    return refuse


def stop_storage(scene: Scene, fault: Fault) -> None:
    """The storage refuses connections for a while."""
    scene.proxy.stop()
    time.sleep(fault.seconds)
    scene.proxy.start()


FAULTS: dict[str, Callable[[Scene, Fault], None]] = {
    "kill-rank": kill_rank,
    "pause-rank": pause_rank,
    "kill-node": kill_node,
    "pause-node": pause_node,
    "preempt-node": preempt_node,
    "cut-link": cut_link,
    "kill-driver": kill_driver,
    "pause-driver": pause_driver,
    "throttle": refuse_requests(["unavailable"], share=0.5, in_a_row=3),
    "cut-transfers": refuse_requests(["cut", "reset"], share=0.3, in_a_row=3),
    "stall-transfers": refuse_requests(["stall"], share=0.1, in_a_row=3),
    "forbid": refuse_requests(["forbidden"], share=1.0),
    "expire-credentials": refuse_requests(["expired"], share=1.0),
    "stop-storage": stop_storage,
}


def _driver(scene: Scene) -> int:
    return int((scene.bench.record(scene.run) / "driver.pid").read_text())


def _pause(processes: list[int], fault: Fault) -> None:
    _signal(processes, signal.SIGSTOP)
    time.sleep(fault.seconds)
    _signal(processes, signal.SIGCONT)


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # ended in between
            os.kill(process, number)


# ---- a run


def draw_plan(seed: int, kinds: Sequence[str], settings: Settings) -> tuple[Fault, ...]:
    """The faults of a seed in the order of their updates, which leave time for a first and a last checkpoint."""
    draw = random.Random(f"plan {seed}")
    updates = sorted(draw.sample(range(settings.updates // 8, 7 * settings.updates // 8), draw.randint(1, MAX_FAULTS)))
    return tuple(
        Fault(kind=draw.choice(list(kinds)), update=update, seconds=round(draw.uniform(*settings.pause_s), 1))
        for update in updates
    )


def run_with_faults(bench: Bench, proxy: FaultProxy, seed: int, plan: tuple[Fault, ...]) -> Result:
    """Trains to the end in spite of the faults, starting the command again where it ends."""
    scene = Scene(bench, proxy, f"seed-{seed}", random.Random(seed))
    starts, injected = 1, list[float]()
    scene.start()
    waiting = list(plan)
    while True:
        reached = _wait(scene, waiting[0].update if waiting else None)
        if reached:
            fault = waiting.pop(0)
            injected.append(time.time())
            FAULTS[fault.kind](scene, fault)
            continue
        if bench.succeeded(scene.job):
            break
        scene.check_end(scene.job)
        if starts == MAX_STARTS:
            raise RuntimeError(f"seed {seed}: {starts} starts without reaching the end:\n{bench.log(scene.job)}")
        starts += 1
        scene.start()
    for node in scene.retired:
        node.kill()
    groups = read_record(bench.record(scene.run))
    counted = account(groups, bench.plan, bench.total)
    return Result(
        seed=seed,
        faults=plan[: len(injected)],
        starts=starts,
        ids_lost=counted.ids_lost,
        ids_repeated=counted.ids_repeated,
        same_weights=bench.generator(scene.run) == bench.undisturbed,
        unexplained=tuple(scene.unexplained),
        gaps_s=tuple(longest_gaps([line["time"] for group in groups for line in group.lines], injected)),
    )


def _wait(scene: Scene, update: int | None) -> bool:
    """Waits for this update or the end of the job; whether the update has begun while the job was running.

    Raises RuntimeError if neither comes.
    """
    since, before = time.monotonic(), 0
    while scene.bench.is_running(scene.job):
        groups = read_record(scene.bench.record(scene.run))
        lines = sum(len(group.lines) for group in groups)
        if update is not None and groups and groups[-1].end >= update * scene.bench.plan.batch_size:
            return True
        if lines != before:
            since, before = time.monotonic(), lines
        if time.monotonic() - since > END_S:
            raise RuntimeError(f"{scene.run}: no update for {END_S:.0f} s:\n{scene.bench.log(scene.job)}")
        time.sleep(0.1)
    return False


def longest_gaps(updates: Sequence[float], faults: Sequence[float]) -> Iterator[float]:
    """For each fault the longest time between two updates until the next fault, seconds.

    updates, faults  times
    """
    times = sorted(updates)
    for begin, end in itertools.pairwise([*faults, float("inf")]):
        first = max([nth for nth, moment in enumerate(times) if moment <= begin], default=0)
        window = [moment for moment in times[first:] if moment <= end]
        yield round(max((after - before for before, after in itertools.pairwise(window)), default=0.0), 1)


@contextlib.contextmanager
def stage(updates: int) -> Iterator[tuple[Bench, FaultProxy]]:
    """A cluster of two nodes, a dataset and runs on a bucket behind a proxy, and the undisturbed run."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))  # variables are as before at the end
        os.environ |= {f"RAY_health_check_{name}": value for name, value in HEALTH_CHECK.items()}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        variables = stack.enter_context(s3_server())
        os.environ |= variables
        settings = ClusterSettings(nodes=2, isolated=can_isolate(), drain_s=DRAIN_S)
        cluster: LocalCluster = stack.enter_context(local_cluster(settings))
        proxy = stack.enter_context(FaultProxy(variables["AWS_ENDPOINT_URL"], Plan(), cluster.gateway))
        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
        data = open_store(join(f"s3://{BUCKET}", "data"))
        pack_samples(data)
        bench = Bench(cluster, open_dataset(data.url), folder, updates)
        bench.environment = variables | {"AWS_ENDPOINT_URL": proxy.url, "DEBLUR_RUNS": f"s3://{BUCKET}/runs"}
        bench.wait(bench.submit("undisturbed"))
        bench.undisturbed = bench.generator("undisturbed")
        yield bench, proxy


def summary(results: Sequence[Result]) -> dict[str, object]:
    """The campaign's figures."""
    gaps = sorted(gap for result in results for gap in result.gaps_s)
    return {
        "seeds": len(results),
        "faults": dict(sorted(Counter(fault.kind for result in results for fault in result.faults).items())),
        "ids_lost": sum(result.ids_lost for result in results),
        "ids_repeated": sum(result.ids_repeated for result in results),
        "other_weights": sum(not result.same_weights for result in results),
        "unexplained_ends": sum(len(result.unexplained) for result in results),
        "seconds_without_updates": {
            "median": round(statistics.median(gaps), 1),
            "95 %": gaps[int(0.95 * (len(gaps) - 1))],
            "most": gaps[-1],
        },
        "broken": [asdict(result) for result in results if not result.kept_promises],
    }


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m benchmarks.chaos")
    kinds = [kind for kind in FAULTS if kind != "cut-link" or can_isolate()]
    results = []
    with stage(settings.updates) as (bench, proxy):
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
            results.append(run_with_faults(bench, proxy, seed, draw_plan(seed, kinds, settings)))
            verdict = "kept" if results[-1].kept_promises else "BROKEN"
            faults = ", ".join(f"{fault.kind} at {fault.update}" for fault in results[-1].faults)
            print(f"seed {seed}: {verdict}; {faults}; without updates {results[-1].gaps_s} s", flush=True)
    print(json.dumps({"benchmark": "chaos", "machine": machine(), "settings": asdict(settings)} | summary(results)))


if __name__ == "__main__":
    main()
