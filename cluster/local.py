"""A Ray cluster of several nodes on this machine: for tests, and to rehearse a job before paying for nodes.

python -m cluster.local --nodes 2    runs until interrupted, and prints the environment variables to export
python -m cluster.local --manifest k8s/raycluster.yaml --scale 0.1    the same with the pods of a RayCluster as nodes

Each node is a `ray start --block` of its own, as in a pod, and can be killed or terminated like one. With --isolated
each has a network namespace with its own address, and its link can be cut.

With --manifest nodes get the `ray start` parameters and the environment that KubeRay 1.7 would give the pods, by our
reading of its source; with --isolated its ports as well, otherwise free ones. The name of the head's service is
replaced by its address. Variables of your shell override those of ConfigMaps and Secrets, so that a rehearsal can use
another bucket. A token is generated here. GPUs are this machine's if it has enough for all pods; otherwise nodes only
declare them, and ranks compute on CPUs. Not supported: images, init containers and sidecars, custom commands of
containers, probes, restarts, volumes, security contexts, limits, network policies, names of other services, the
autoscaler.
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
import torch
import tyro

from cluster.errors import InputError, one_line_errors
from cluster.on_ray.placement import LOGICAL_GPUS
from cluster.rehearsal.manifest import GCS_PORT, Cluster, Pod, read_cluster, start_command
from cluster.rehearsal.network import Network, Place, can_isolate, new_name, new_network

MARK = "LOCAL_CLUSTER_NODE"  # holds the node's name in the environment of all of its processes
OBJECT_STORE_BYTES = 100_000_000
MIN_OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum is 75 MiB
DASHBOARD_PORT = "8265"
RAY = str(Path(sys.executable).with_name("ray"))  # the `ray` command of this Python
# Variables of the shell that belong to another cluster.
OTHER_CLUSTERS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
START_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Settings:
    nodes: int = 2
    """Worker nodes, beside a head that runs no ranks."""
    cpus_per_node: int = 1
    """CPUs that each worker node declares."""
    isolated: bool = False
    """Run each node in a network namespace with its own address, from which it reaches only this machine; needs root
    and iproute2."""
    drain_s: int = 20
    """Seconds between SIGTERM and the end of a node."""
    manifest: Path | None = None
    """A file with a RayCluster, RayJob or RayService, which replaces --nodes, --cpus-per-node and --drain-s."""
    scale: float = 1.0
    """The fraction of the manifest's CPUs, memory and object store that a node gets: at least 1 CPU and 80 MB."""

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise InputError(f"--scale is {self.scale}; it must be greater than 0 and at most 1")


# ---- nodes


class Node:
    """One `ray start --block` and all processes that it started."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = place.name
        self.address = place.address
        self._place = place
        self._process = process
        self._log = log

    def kill(self) -> None:
        """SIGKILL to all processes of the node, as if the machine were gone."""
        kill_processes(self.name)
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, as in a spot preemption: the node drains, then ends. Returns at once."""
        self._process.terminate()

    def cut(self) -> None:
        """Takes the node's link down: it keeps running, but is unreachable."""
        self._place.cut()

    def wait_until_started(self) -> None:
        """Returns when the cluster lists the node as alive, which is when `ray start` prints that it has started."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in (output := self._log.read_text()):
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{output}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} did not start within {START_TIMEOUT_S} s:\n{output}")
            time.sleep(0.05)


def find_processes(name: str) -> list[int]:
    """The ids of all processes of a node, or of all nodes of a cluster, by its name."""
    marks = [f"{MARK}={name}{end}".encode() for end in ("\0", "-")]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended in between, or belongs to another user
            environment = (process / "environ").read_bytes()
            if any(mark in environment for mark in marks):
                found.append(int(process.name))
    return found


def kill_processes(name: str) -> None:
    """SIGKILL to what find_processes finds, until it finds none: a process may start another in between."""
    while found := find_processes(name):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def free_port() -> int:
    """An unused port below the range from which the system assigns ports itself."""
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port


# ---- the pods of a cluster


def _pods(settings: Settings) -> Cluster:
    """Those of the manifest, scaled for this machine, or plain ones."""
    head, workers = ({}, {}) if settings.isolated else _free_ports()
    if settings.manifest is None:
        return _plain(settings, head, workers)
    pods = read_cluster(settings.manifest, os.environ, head, workers)
    return replace(
        pods,
        head=_scaled(pods.head, settings.scale),
        workers=tuple(_scaled(pod, settings.scale) for pod in pods.workers),
    )


def _plain(settings: Settings, head: dict[str, str], workers: dict[str, str]) -> Cluster:
    """A head without CPUs, as in our manifests, and workers."""
    each = {"block": "true", "object-store-memory": str(OBJECT_STORE_BYTES)}
    # The head's other ports are open likewise; with --isolated only this machine reaches them.
    head = each | {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"} | head  # noqa: S104
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
    """Parameters of the head and of workers that share this machine's ports; 0 lets Ray choose."""
    names = ("metrics-export", "dashboard-agent-listen", "node-manager", "object-manager", "min-worker", "max-worker")
    each = {f"{name}-port": "0" for name in names}
    fixed = {name: str(free_port()) for name in ("port", "dashboard-port", "ray-client-server-port")}
    # The cluster may have no authentication, so only this machine can submit jobs.
    return each | fixed | {"dashboard-host": "127.0.0.1"}, each


def _scaled(pod: Pod, scale: float) -> Pod:
    """A pod with a fraction of its CPUs, memory and object store."""
    # Without these parameters Ray would detect the GPUs and memory of the whole machine; in a pod it sees the pod's.
    start = {"num-gpus": "0", "object-store-memory": str(OBJECT_STORE_BYTES)} | pod.start
    for name, minimum in (("num-cpus", 1), ("memory", 1), ("object-store-memory", MIN_OBJECT_STORE_BYTES)):
        if (value := start.get(name, "")).isdigit() and int(value):
            start[name] = str(max(minimum, int(int(value) * scale)))
    return replace(pod, start=start)


def visible_gpus() -> list[str]:
    """The ids of the GPUs that a process started here sees."""
    ids = os.environ.get("CUDA_VISIBLE_DEVICES")
    if ids is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name for name in ids.split(",") if name not in ("", "NoDevFiles")]


# ---- the cluster


class LocalCluster:
    """A head and its worker nodes; local_cluster makes it."""

    name: str
    """Prefix of the names of nodes, namespaces and links."""
    ray: str
    """RAY_ADDRESS of a driver on this machine or, if isolated, in the head's namespace, where jobs start."""
    jobs: str
    """Address for `ray job submit --address` and JobSubmissionClient, on this machine."""
    token: Path | None
    """File for RAY_AUTH_TOKEN_PATH, if the cluster requires a token."""
    gateway: str
    """This machine's address as seen by the nodes."""
    logical_gpus: bool
    """Whether nodes declare GPUs that do not exist."""
    nodes: list[Node]
    """The worker nodes in the order of their start, ended ones included."""

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
        gpus, wanted = visible_gpus(), sum(pod.gpus * pod.replicas for pod in (pods.head, *pods.workers))
        self.logical_gpus = wanted > len(gpus)
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
        """Kills all nodes."""
        kill_processes(self.name)
        for process in self._processes:
            process.wait()

    def add_node(self) -> Node:
        """Starts one more worker node of the first group; returns when it is alive."""
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
        return Place(name=f"{self.name}-{number}", address=_own_address(), isolated=False)

    def _start(self, place: Place, pod: Pod) -> Node:
        # A folder per node, else each would print the logs of all. Its path is short because it contains sockets.
        folder = self._folder / place.name.removeprefix(f"{self.name}-")
        folder.mkdir()
        log = folder / "start.log"
        start = self._resolved(pod.start, place)
        start |= {"node-name": place.name, "node-ip-address": place.address, "temp-dir": str(folder)}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*place.command(), *_container_command(start_command(start, is_head=pod is self._pods.head))],
                env=self.environment(place, pod),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach only this process, which then stops the nodes
            )
        self._processes.append(process)
        return Node(place, process, log)

    def _resolved(self, values: dict[str, str], place: Place) -> dict[str, str]:
        head = self.ray.rpartition(":")[0]
        return self._pods.resolved(values, head=head, name=place.name, address=place.address)

    def environment(self, place: Place, pod: Pod) -> dict[str, str]:
        """Of a new node: this shell's, the pod's, and what several nodes on one machine need."""
        environment = {name: value for name, value in os.environ.items() if name not in OTHER_CLUSTERS}
        environment |= self._resolved(pod.environment, place)
        environment |= {
            MARK: place.name,
            "SPT_NOENV": "1",  # else Ray sometimes overwrites MARK when it renames its processes
            # A submitted job runs this Python with the same modules.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # off: it charges the page cache of the machine to the node
        }
        if place.isolated:
            # Else they use the address of the host name, which is outside of the namespace.
            environment |= {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}
        if self.token:
            environment["RAY_AUTH_TOKEN"] = self.token.read_text()
        if self.logical_gpus:
            environment.pop("CUDA_VISIBLE_DEVICES", None)  # Ray fails if it lists fewer than the node declares
            environment[LOGICAL_GPUS] = "1"
        elif pod.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(itertools.islice(self._gpus, pod.gpus))
        return environment


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()
    return address


def _container_command(ray_start: str) -> list[str]:
    """The command of a container under KubeRay (BuildPod), with the Ray of this Python."""
    command = f"{shlex.join([sys.executable, '-u', RAY])} {ray_start.removeprefix('ray ')}"
    # With `exec`, which bash does anyway for the last command, SIGTERM reaches Ray.
    script = f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; exec {command}"
    return ["/bin/bash", "-c", "--", script]


@contextlib.contextmanager
def local_cluster(settings: Settings) -> Iterator[LocalCluster]:
    """Starts a head and worker nodes, which end with the context."""
    if settings.isolated and not can_isolate():
        raise InputError("--isolated needs root, iproute2 (ip) and permission to create network namespaces")
    pods, name = _pods(settings), new_name()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        network = stack.enter_context(new_network(name)) if settings.isolated else None
        cluster = LocalCluster(pods, name, Path(folder), network)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def _usage(cluster: LocalCluster) -> str:
    """Lines to paste into a shell."""
    lines = [f"export RAY_API_SERVER_ADDRESS={cluster.jobs}"]
    if cluster.token:
        lines += ["export RAY_AUTH_MODE=token", f"export RAY_AUTH_TOKEN_PATH={cluster.token}"]
    jobs = "# jobs: ray job submit --working-dir . -- python -m ..."
    if cluster.gateway == "127.0.0.1":
        lines += [f"export RAY_ADDRESS={cluster.ray}", jobs, "# drivers: python -m ..."]
    else:
        lines += [jobs, f"# nodes reach only this machine, at {cluster.gateway}"]
    if cluster.logical_gpus:
        lines.append("# nodes declare GPUs that do not exist: ranks compute on CPUs")
    return "\n".join(lines)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m cluster.local")
    for number in (signal.SIGTERM, signal.SIGINT):  # background jobs of a script ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    with one_line_errors(), contextlib.suppress(KeyboardInterrupt), local_cluster(settings) as cluster:
        print(_usage(cluster), flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
