"""A Ray cluster of several nodes on this machine: for tests, and to rehearse a job before nodes are paid for.

python -m cluster.local --nodes 2    runs until it is interrupted and prints what to export
python -m cluster.local --manifest k8s/raycluster.yaml --scale 0.1    the same, its nodes the pods of a RayCluster

Every node is a `ray start --block` of its own, as in a pod, and can be killed or told to end as a pod is. With
--isolated each has a network namespace and an address of its own as well, and its link can be cut.

With --manifest the nodes have the `ray start` parameters and the environment that KubeRay 1.7 would give the pods, by
our reading of it; with --isolated its ports as well, without it free ones. The name of the head's service becomes its
address. A variable of your shell wins over the value that a ConfigMap or a Secret has for it, so that a rehearsal can
use another bucket. A token is made here. GPUs are this machine's if it has enough for all pods; else they are there by
name alone, and ranks compute on CPUs. Not done: images, init containers and sidecars, commands of the containers' own,
probes, restarts, volumes, security contexts, limits, network policies, names of other services, the autoscaler.
"""

import contextlib
import itertools
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import ray.util
import tyro
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from cluster.errors import InputError, one_line_errors
from cluster.on_ray.placement import LOGICAL_GPUS
from cluster.rehearsal.manifest import GCS_PORT, Cluster, Pod, read_cluster, start_command
from cluster.rehearsal.network import Network, Place, can_isolate, new_name, new_network

MARK = "LOCAL_CLUSTER_NODE"  # names the node in the environment of every process of it
OBJECT_STORE_BYTES = 100_000_000
LEAST_OBJECT_STORE_BYTES = 80_000_000  # Ray takes no less than 75 MiB
DASHBOARD_PORT = "8265"
# What the shell says of another cluster.
OF_OTHER_CLUSTERS = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
START_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Settings:
    nodes: int = 2
    """Worker nodes, beside a head that takes no work."""
    cpus_per_node: int = 1
    """CPUs that each worker node says it has."""
    isolated: bool = False
    """Each node in a network namespace with an address of its own, from which it reaches this machine and nothing
    else; needs root and iproute2."""
    drain_s: int = 20
    """Seconds that a node still has after SIGTERM."""
    manifest: Path | None = None
    """A file with a RayCluster, RayJob or RayService: it says all that --nodes, --cpus-per-node and --drain-s say."""
    scale: float = 1.0
    """The share of the manifest's CPUs, memory and object store that a node gets: 1 CPU and 80 MB at least."""

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise InputError(f"--scale is {self.scale}; it must be above 0, and at most 1")


# ---- nodes


class Node:
    """One `ray start --block` and every process that came of it."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = place.name
        self.address = place.address
        self._place = place
        self._process = process
        self._log = log

    def kill(self) -> None:
        """SIGKILL to every process of the node: the machine is gone."""
        kill_processes(self.name)
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, as a spot reclaim sends it: the node drains, then ends. Returns at once."""
        self._process.terminate()

    def cut(self) -> None:
        """Takes the node's link down: it runs on, but nobody hears of it."""
        self._place.cut()

    def wait_until_started(self) -> None:
        """Returns when the cluster knows the node as alive: `ray start` says so then."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in (output := self._log.read_text()):
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{output}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} has not started within {START_TIMEOUT_S} s:\n{output}")
            time.sleep(0.05)


def find_processes(name: str) -> list[int]:
    """The ids of all processes of the node of that name, or of all nodes of the cluster of that name."""
    marks = [f"{MARK}={name}{end}".encode() for end in ("\0", "-")]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            environment = (process / "environ").read_bytes()
            if any(mark in environment for mark in marks):
                found.append(int(process.name))
    return found


def kill_processes(name: str) -> None:
    """SIGKILL to all that find_processes finds, until it finds none: a process may start another meanwhile."""
    while found := find_processes(name):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens on, from below those that the system hands out by itself."""
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("", port))
            return port


# ---- the pods of a cluster


def _pods(settings: Settings) -> Cluster:
    """Those of the manifest as they are here, or as many plain ones as asked for."""
    head, workers = ({}, {}) if settings.isolated else _free_ports()
    if settings.manifest is None:
        return _plain(settings, head, workers)
    found = read_cluster(settings.manifest, os.environ, head, workers)
    return replace(
        found,
        head=_scaled(found.head, settings.scale),
        workers=tuple(_scaled(pod, settings.scale) for pod in found.workers),
    )


def _plain(settings: Settings, head: dict[str, str], workers: dict[str, str]) -> Cluster:
    """A head without CPUs, as in our manifests, and workers."""
    each = {"block": "true", "object-store-memory": str(OBJECT_STORE_BYTES)}
    head = each | {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"} | head
    service = "head.default.svc.cluster.local"
    workers = each | {"address": f"{service}:{head.get('port', GCS_PORT)}"} | workers
    workers |= {"num-cpus": str(settings.cpus_per_node)}
    environment = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(settings.drain_s)}
    return Cluster(
        name="local",
        service=service,
        head=Pod(group="headgroup", replicas=1, start=head, environment=environment),
        workers=(Pod(group="workers", replicas=settings.nodes, start=workers, environment=environment),),
    )


def _free_ports() -> tuple[dict[str, str], dict[str, str]]:
    """Parameters of the head and of workers where all share this machine's ports; 0 is any that is free."""
    names = ("metrics-export", "dashboard-agent-listen", "node-manager", "object-manager", "min-worker", "max-worker")
    each = {f"{name}-port": "0" for name in names}
    known = {name: str(free_port()) for name in ("port", "dashboard-port", "ray-client-server-port")}
    # A cluster may ask nobody for a password: jobs are taken from this machine alone.
    return each | known | {"dashboard-host": "127.0.0.1"}, each


def _scaled(pod: Pod, scale: float) -> Pod:
    """A pod with a share of its CPUs, memory and object store, and nothing left that Ray would look up by itself."""
    # It would count the GPUs and the memory of this machine, where in a pod it sees the pod's own.
    start = {"num-gpus": "0", "object-store-memory": str(OBJECT_STORE_BYTES)} | pod.start
    for name, least in (("num-cpus", 1), ("memory", 1), ("object-store-memory", LEAST_OBJECT_STORE_BYTES)):
        if (value := start.get(name, "")).isdigit() and int(value):
            start[name] = str(max(least, int(int(value) * scale)))
    return replace(pod, start=start)


def gpus_here() -> list[str]:
    """The ids of the GPUs that a process started here sees."""
    ids = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    if ids is not None:
        return ids
    return [str(number) for number in range(NvidiaGPUAcceleratorManager.get_current_node_num_accelerators())]


# ---- the cluster


class LocalCluster:
    """A head and its worker nodes; local_cluster makes it."""

    name: str
    """Begins the name of each node, and with it those of namespaces and links."""
    ray: str
    """For RAY_ADDRESS of a driver: on this machine or, if isolated, in the head's namespace; a job is started there."""
    jobs: str
    """For `ray job submit --address` and JobSubmissionClient, on this machine."""
    token: Path | None
    """For RAY_AUTH_TOKEN_PATH, where the cluster asks for a token."""
    gateway: str
    """This machine's address as the nodes see it."""
    gpus_by_name: bool
    """Whether nodes say that they have GPUs which are not there."""
    nodes: list[Node]
    """The worker nodes in the order of their start, also those that have ended."""

    def __init__(self, pods: Cluster, name: str, folder: Path, network: Network | None) -> None:
        self.name = name
        self.gateway = network.gateway if network else "127.0.0.1"
        self.token = folder / "token" if pods.token else None
        self.nodes = []
        self._pods = pods
        self._folder = folder
        self._network = network
        self._numbers = itertools.count()
        self._processes: list[subprocess.Popen[bytes]] = []
        gpus, wanted = gpus_here(), sum(pod.gpus * pod.replicas for pod in (pods.head, *pods.workers))
        self.gpus_by_name = wanted > len(gpus)
        self._gpus = iter(gpus)

    def start(self) -> None:
        """Returns when the head and all worker nodes are alive."""
        if self.token:
            self.token.touch(mode=0o600)
            self.token.write_text(secrets.token_hex(32))
        self._start_head().wait_until_started()
        self.nodes += [self._start(self._new_place(), pod) for pod in self._pods.workers for _ in range(pod.replicas)]
        for node in self.nodes:
            node.wait_until_started()

    def stop(self) -> None:
        """Kills what is left of all nodes."""
        kill_processes(self.name)
        for process in self._processes:
            process.wait()

    def add_node(self) -> Node:
        """One more worker node, of the first group, alive in the cluster."""
        node = self._start(self._new_place(), self._pods.workers[0])
        self.nodes.append(node)
        node.wait_until_started()
        return node

    def _start_head(self) -> Node:
        place, start = self._new_place(), self._pods.head.start
        self.ray = f"{place.address}:{start.get('port', GCS_PORT)}"
        host = place.address if place.isolated else start["dashboard-host"]
        self.jobs = f"http://{host}:{start.get('dashboard-port', DASHBOARD_PORT)}"
        return self._start(place, self._pods.head)

    def _new_place(self) -> Place:
        number = next(self._numbers)
        if self._network:
            return self._network.add(number)
        return Place(name=f"{self.name}-{number}", address=ray.util.get_node_ip_address(), isolated=False)

    def _start(self, place: Place, pod: Pod) -> Node:
        # A folder of its own, or each node would tell every node's logs. Its path is short: sockets are in it.
        folder = self._folder / place.name.removeprefix(f"{self.name}-")
        folder.mkdir()
        log = folder / "start.log"
        start = self._settled(pod.start, place)
        start |= {"node-name": place.name, "node-ip-address": place.address, "temp-dir": str(folder)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*place.command(), *_container_command(start_command(start, is_head=pod is self._pods.head))],
                env=self.environment(place, pod),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the nodes end with the cluster
            )
        self._processes.append(process)
        return Node(place, process, log)

    def _settled(self, values: dict[str, str], place: Place) -> dict[str, str]:
        head = self.ray.rpartition(":")[0]
        return self._pods.settled(values, head=head, name=place.name, address=place.address)

    def environment(self, place: Place, pod: Pod) -> dict[str, str]:
        """What a new node has: this shell's, the pod's, and what several nodes on one machine need."""
        environment = {name: value for name, value in os.environ.items() if name not in OF_OTHER_CLUSTERS}
        environment |= self._settled(pod.environment, place)
        environment |= {
            MARK: place.name,
            "SPT_NOENV": "1",  # or Ray, as it renames its processes, at times writes over the mark
            # The `python` of a submitted job is this one, and it imports what we import.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # off: it counts the page cache of a whole machine as the node's
        }
        if place.isolated:
            # They would take the address of the machine's name, which is outside the namespace.
            environment |= {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}
        if self.token:
            environment["RAY_AUTH_TOKEN"] = self.token.read_text()
        if self.gpus_by_name:
            environment.pop("CUDA_VISIBLE_DEVICES", None)  # Ray would find fewer there than the node says it has
            environment[LOGICAL_GPUS] = "1"
        elif pod.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(itertools.islice(self._gpus, pod.gpus))
        return environment


def _container_command(ray_start: str) -> list[str]:
    """What KubeRay has a container run (BuildPod), with this Python's Ray."""
    mine = shlex.join([sys.executable, "-u", "-m", "ray.scripts.scripts"])
    # `exec`, which bash does by itself where nothing follows: SIGTERM is for Ray.
    script = f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; exec {mine} {ray_start.removeprefix('ray ')}"
    return ["/bin/bash", "-c", "--", script]


@contextlib.contextmanager
def local_cluster(settings: Settings) -> Iterator[LocalCluster]:
    """Starts a head and the worker nodes; nothing of them outlives the context."""
    if settings.isolated and not can_isolate():
        raise InputError("--isolated: network namespaces need root and iproute2 (ip), and a container may forbid them")
    pods, name = _pods(settings), new_name()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        network = stack.enter_context(new_network(name)) if settings.isolated else None
        cluster = LocalCluster(pods, name, Path(folder), network)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def _how_to_use(cluster: LocalCluster) -> str:
    token = f" RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={cluster.token}" if cluster.token else ""
    lines = [f"export RAY_ADDRESS={cluster.jobs}{token}   # of ray job submit; of drivers here: {cluster.ray}"]
    if cluster.gateway != "127.0.0.1":
        lines.append(f"# the nodes reach this machine, and nothing else, at {cluster.gateway}")
    if cluster.gpus_by_name:
        lines.append("# GPUs are there by name alone: ranks compute on CPUs")
    return "\n".join(lines)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m cluster.local")
    for number in (signal.SIGTERM, signal.SIGINT):  # a script's background command has the second one ignored
        signal.signal(number, signal.default_int_handler)
    with one_line_errors(), contextlib.suppress(KeyboardInterrupt), local_cluster(settings) as cluster:
        print(_how_to_use(cluster), flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
