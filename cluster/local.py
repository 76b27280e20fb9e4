"""A Ray cluster of several nodes on this machine: for tests, and to try a cluster's commands without one.

python -m cluster.local --nodes 2    runs until it is interrupted and prints the addresses to use

Every node is a `ray start --block` of its own, as in a pod, and can be killed or told to end as a pod is. With
--isolated each has a network namespace and an address of its own as well, and its link can be cut.
"""

import contextlib
import ipaddress
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray.util
import tyro

from cluster.errors import InputError, one_line_errors

MARK = "LOCAL_CLUSTER_NODE"  # names the node in the environment of every process of it
OBJECT_STORE_BYTES = 100_000_000
START_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class Settings:
    nodes: int = 2
    """Worker nodes, beside a head that takes no work."""
    cpus_per_node: int = 1
    """CPUs that each worker node says it has."""
    isolated: bool = False
    """Each node in a network namespace with an address of its own; needs root and iproute2."""
    drain_s: int = 20
    """Seconds that a node still has after SIGTERM."""


# ---- places: this machine as it is, or network namespaces on a bridge


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a node runs; a namespace and the outer end of its link have the place's name."""

    name: str
    address: str
    isolated: bool

    def command(self) -> list[str]:
        """What a command has to begin with to run here."""
        return ["ip", "netns", "exec", self.name] if self.isolated else []


@dataclass(frozen=True, kw_only=True)
class Network:
    """A bridge of this machine, and the namespaces that are linked to it."""

    name: str
    subnet: ipaddress.IPv4Network
    stack: contextlib.ExitStack

    @property
    def gateway(self) -> str:
        """This machine's address on the bridge."""
        return str(self.subnet[1])

    def add(self, number: int) -> Place:
        """A new namespace with a link, eth0, to the bridge. Without a default route: nothing outside is needed."""
        place = Place(name=f"{self.name}-{number}", address=str(self.subnet[number + 2]), isolated=True)
        _ip("netns", "add", place.name)
        self.stack.callback(_ip, "netns", "delete", place.name)
        _ip("link", "add", place.name, "type", "veth", "peer", "name", "eth0", "netns", place.name)
        # It would go with the namespace, but some time later.
        self.stack.callback(_ip, "link", "delete", place.name)
        _ip("link", "set", place.name, "master", self.name, "up")
        _ip("-n", place.name, "address", "add", f"{place.address}/24", "dev", "eth0")
        _ip("-n", place.name, "link", "set", "eth0", "up")
        _ip("-n", place.name, "link", "set", "lo", "up")
        return place


@contextlib.contextmanager
def new_network(name: str) -> Iterator[Network]:
    """A bridge of that name on a subnet that nobody here uses; it and all on it end with the context."""
    with contextlib.ExitStack() as stack:
        network = Network(name=name, subnet=_free_subnet(), stack=stack)
        _ip("link", "add", name, "type", "bridge")
        stack.callback(_ip, "link", "delete", name)
        _ip("address", "add", f"{network.gateway}/24", "dev", name)
        _ip("link", "set", name, "up")
        yield network


def can_isolate() -> bool:
    """Whether this process may make bridges and network namespaces: it tries."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with new_network(_new_name()) as network:
            subprocess.run([*network.add(0).command(), "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        return False
    return True


def _free_subnet() -> ipaddress.IPv4Network:
    routes = json.loads(_ip("-4", "-json", "route", "show") or "[]")
    used = [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    while True:
        subnet = ipaddress.IPv4Network(f"10.{secrets.randbelow(256)}.{secrets.randbelow(256)}.0/24")
        if not any(subnet.overlaps(other) for other in used):
            return subnet


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _new_name() -> str:
    # Short: with a node's number it is the name of an interface, which ends at 15 characters.
    return f"ray{secrets.token_hex(3)}"


# ---- nodes


class Node:
    """One `ray start --block` and every process that came of it."""

    def __init__(self, place: Place, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = place.name
        self.address = place.address
        self._isolated = place.isolated
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
        if not self._isolated:
            raise RuntimeError(f"{self.name} has no link of its own to cut; start the cluster with isolated=True")
        _ip("link", "set", self.name, "down")

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


# ---- the cluster


class LocalCluster:
    """A head and its worker nodes; local_cluster makes it."""

    name: str
    """Begins the name of each node, and with it those of namespaces and links."""
    ray: str
    """For RAY_ADDRESS of a driver: on this machine or, if isolated, in the head's namespace; a job is started there."""
    jobs: str
    """For `ray job submit --address` and JobSubmissionClient, on this machine."""
    gateway: str
    """This machine's address as the nodes see it."""
    nodes: list[Node]
    """The worker nodes in the order of their start, also those that have ended."""

    def __init__(self, settings: Settings, name: str, folder: Path, network: Network | None) -> None:
        self.name = name
        self.gateway = network.gateway if network else "127.0.0.1"
        self.nodes = []
        self._settings = settings
        self._folder = folder
        self._network = network
        self._numbers = itertools.count()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when the head and all worker nodes are alive."""
        self._start_head().wait_until_started()
        self.nodes += [self._start_worker() for _ in range(self._settings.nodes)]
        for node in self.nodes:
            node.wait_until_started()

    def stop(self) -> None:
        """Kills what is left of all nodes."""
        kill_processes(self.name)
        for process in self._processes:
            process.wait()

    def add_node(self) -> Node:
        """One more worker node, alive in the cluster."""
        node = self._start_worker()
        self.nodes.append(node)
        node.wait_until_started()
        return node

    def _start_head(self) -> Node:
        place = self._new_place()
        # Ray asks nobody for a password: jobs are taken from this machine alone.
        host = place.address if place.isolated else "127.0.0.1"
        ray_port, jobs_port = free_port(), free_port()
        self.ray = f"{place.address}:{ray_port}"
        self.jobs = f"http://{host}:{jobs_port}"
        options = f"--head --port {ray_port} --ray-client-server-port {free_port()} --num-cpus 0 --num-gpus 0 "
        options += f"--include-dashboard true --dashboard-host {host} --dashboard-port {jobs_port}"
        return self._start(place, options.split())

    def _start_worker(self) -> Node:
        options = ["--address", self.ray, "--num-cpus", str(self._settings.cpus_per_node)]
        return self._start(self._new_place(), options)

    def _new_place(self) -> Place:
        number = next(self._numbers)
        if self._network:
            return self._network.add(number)
        return Place(name=f"{self.name}-{number}", address=ray.util.get_node_ip_address(), isolated=False)

    def _start(self, place: Place, options: list[str]) -> Node:
        # A folder of its own, or each node would tell every node's logs. Its path is short: sockets are in it.
        folder = self._folder / place.name.removeprefix(f"{self.name}-")
        folder.mkdir()
        log = folder / "start.log"
        command = [*place.command(), sys.executable, "-u", "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += ["--node-name", place.name, "--node-ip-address", place.address, "--temp-dir", str(folder)]
        command += ["--object-store-memory", str(OBJECT_STORE_BYTES)]
        # 0 is any free port; Ray's own choices are the same on every node.
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=self._environment(place),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the nodes end with the cluster
            )
        self._processes.append(process)
        return Node(place, process, log)

    def _environment(self, place: Place) -> dict[str, str]:
        environment = os.environ | {
            MARK: place.name,
            "SPT_NOENV": "1",  # or Ray, as it renames its processes, at times writes over the mark
            # The `python` of a submitted job is this one, and it imports what we import.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(self._settings.drain_s),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # off: it counts the page cache of a whole machine as the node's
        }
        if place.isolated:
            # They would take the address of the machine's name, which is outside the namespace.
            environment |= {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth0"}
        environment.pop("RAY_ADDRESS", None)
        return environment


@contextlib.contextmanager
def local_cluster(settings: Settings) -> Iterator[LocalCluster]:
    """Starts a head without CPUs, as in our manifests, and the worker nodes; nothing of them outlives the context."""
    if settings.isolated and not can_isolate():
        raise InputError("--isolated: network namespaces need root and iproute2 (ip), and a container may forbid them")
    name = _new_name()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        network = stack.enter_context(new_network(name)) if settings.isolated else None
        cluster = LocalCluster(settings, name, Path(folder), network)
        stack.callback(cluster.stop)
        cluster.start()
        yield cluster


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m cluster.local")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with one_line_errors(), contextlib.suppress(KeyboardInterrupt), local_cluster(settings) as cluster:
        print(f"export RAY_ADDRESS={cluster.jobs}   # of ray job submit; of drivers here: {cluster.ray}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
