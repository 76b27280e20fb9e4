"""A cluster of several nodes on this machine: jobs, nodes that join and leave, and cleanup."""

import contextlib
import itertools
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes

from cluster.errors import InputError
from cluster.local import LocalCluster, Settings, find_processes, local_cluster
from cluster.on_ray.placement import LOGICAL_GPUS
from cluster.rehearsal.manifest import Cluster, Pod
from cluster.rehearsal.network import Place
from tests.clusters import ISOLATED, two_nodes

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with two_nodes(drain_s=5) as started:
        yield started
    assert not left_of(started.name)


def alive(address: str) -> set[str]:
    # A filter of list_nodes itself fails as soon as there are dead nodes.
    return {node.node_name for node in list_nodes(address=address) if node.state == "ALIVE"}


def wait_until_dead(cluster: LocalCluster, name: str) -> None:
    while name in alive(cluster.jobs):
        time.sleep(0.1)


def left_of(name: str) -> list[str]:
    """Processes, namespaces and links of a cluster that still exist."""
    left = [str(process) for process in find_processes(name)]
    if ISOLATED:
        for listing in (["netns", "list"], ["-oneline", "link"]):
            lines = subprocess.run(["ip", *listing], check=True, capture_output=True, text=True).stdout.splitlines()
            left += [line for line in lines if name in line]
    return left


JOB = """
import socket, sys
import cluster, deblur, tests
import ray
ray.init()
host, port = sys.argv[1:]
socket.create_connection((host, int(port)), timeout=10).close()
print("driver on", ray.util.get_node_ip_address())
for node in ray.nodes():
    print("node", node["NodeName"], node["NodeManagerAddress"], node["Resources"].get("CPU", 0))
"""


def test_job_runs_on_the_head_lists_the_nodes_and_reaches_this_machine(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    client = JobSubmissionClient(cluster.jobs)
    with socket.create_server((cluster.gateway, 0)) as server:
        port = server.getsockname()[1]
        job = client.submit_job(entrypoint=f"python {tmp_path}/job.py {cluster.gateway} {port}")
        while not client.get_job_status(job).is_terminal():
            time.sleep(0.2)
    log = client.get_job_logs(job)
    assert client.get_job_status(job) == "SUCCEEDED", log
    head = cluster.ray.partition(":")[0]
    assert f"driver on {head}\n" in log
    seen = {line.split(maxsplit=1)[1] for line in log.splitlines() if line.startswith("node ")}
    assert seen == {f"{cluster.name}-0 {head} 0"} | {f"{node.name} {node.address} 1.0" for node in cluster.nodes}
    assert len({head, *(node.address for node in cluster.nodes)}) == (3 if ISOLATED else 1)


def test_killed_node_is_dead_and_another_joins(cluster: LocalCluster) -> None:
    node = cluster.nodes[0]
    assert len(find_processes(node.name)) > 2
    node.kill()
    assert not find_processes(node.name)
    wait_until_dead(cluster, node.name)
    new = cluster.add_node()
    assert new in cluster.nodes
    assert alive(cluster.jobs) == {f"{cluster.name}-0", cluster.nodes[1].name, new.name}


def test_terminated_node_drains_and_ends(cluster: LocalCluster) -> None:
    node = cluster.add_node()
    node.terminate()
    wait_until_dead(cluster, node.name)
    while find_processes(node.name):
        time.sleep(0.1)


def test_node_with_a_cut_link_keeps_running_and_is_declared_dead(cluster: LocalCluster) -> None:
    node = cluster.nodes[1]
    if not ISOLATED:
        with pytest.raises(RuntimeError, match="isolated=True"):
            node.cut()
        return
    running = find_processes(node.name)
    inside = subprocess.run(["ip", "netns", "pids", node.name], check=True, capture_output=True, text=True).stdout
    assert sorted(running) == sorted(int(line) for line in inside.split())
    node.cut()
    wait_until_dead(cluster, node.name)
    assert find_processes(node.name)


# ---- the command


@contextlib.contextmanager
def command(*options: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m cluster.local`, interrupted at the end of the context."""
    started = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", *options], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        started.communicate()


def exported(started: subprocess.Popen[str]) -> dict[str, str]:
    """The variables that the output's first lines export, one each."""
    assert started.stdout
    lines = iter(started.stdout.readline, "")
    exports = itertools.takewhile(lambda words: words[0] == "export", map(shlex.split, lines))
    return dict(variable.split("=", maxsplit=1) for _, variable in exports)


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_command_leaves_nothing_behind_after_a_signal(number: int) -> None:
    with command("--nodes", "0", *(["--isolated"] if ISOLATED else [])) as started:
        (head,) = alive(exported(started)["RAY_API_SERVER_ADDRESS"])
        name = head.rpartition("-")[0]
        assert left_of(name)
        started.send_signal(number)
        started.wait()
    assert started.returncode == 0
    assert not left_of(name)


# A worker with GPUs that do not exist, and too large for this test without --scale.
MANIFEST = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: small, namespace: tests}
spec:
  authOptions: {mode: token}
  headGroupSpec:
    rayStartParams: {num-cpus: "0"}
    template:
      spec:
        containers:
          - name: ray-head
            resources: {limits: {cpu: "2", memory: 8Gi}}
  workerGroupSpecs:
    - groupName: gpu-workers
      replicas: 1
      rayStartParams: {object-store-memory: "2000000000"}
      template:
        spec:
          containers:
            - name: ray-worker
              env:
                - {name: HEAD, value: "small-head-svc.tests.svc:1"}
              resources: {limits: {cpu: "20", memory: 40Gi, nvidia.com/gpu: 3}}
"""


def get(address: str, path: str, token: str) -> Any:
    """JSON from the head's dashboard."""
    request = urllib.request.Request(f"{address}/{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def environments(name: str) -> list[dict[str, str]]:
    """Of all processes of a node."""
    found = [Path(f"/proc/{process}/environ").read_text().split("\0") for process in find_processes(name)]
    return [dict(line.split("=", maxsplit=1) for line in lines if "=" in line) for lines in found]


@pytest.mark.cluster
def test_manifest_is_started_on_free_ports_with_token_authentication(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(MANIFEST)
    with command("--manifest", str(tmp_path / "cluster.yaml"), "--scale", "0.1") as started:
        variables = exported(started)
        address, path = variables["RAY_API_SERVER_ADDRESS"], Path(variables["RAY_AUTH_TOKEN_PATH"])
        assert variables["RAY_AUTH_MODE"] == "token"
        assert path.stat().st_mode & 0o777 == 0o600
        assert address.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(address, "api/jobs/", "wrong")
        nodes = get(address, "api/v0/nodes?detail=1", path.read_text())["data"]["result"]["result"]
        resources = {node["is_head_node"]: node["resources_total"] for node in nodes}
        assert "CPU" not in resources[True]
        assert "GPU" not in resources[True]
        assert resources[False]["memory"] == 4 << 30
        assert {kind: resources[False][kind] for kind in ("CPU", "GPU")} == {"CPU": 2, "GPU": 3}
        assert resources[False]["object_store_memory"] == 200_000_000
        (name,) = [node["node_name"] for node in nodes if not node["is_head_node"]]
        for environment in environments(name):
            assert environment["RAY_NODE_TYPE_NAME"] == "gpu-workers"
            assert environment["HEAD"].endswith(":1")
            assert "head-svc" not in environment["HEAD"]
            assert environment[LOGICAL_GPUS] == "1"
    assert not left_of(name.rpartition("-")[0])
    assert not path.exists()


# ---- without starting anything


def gpus_of_nodes(monkeypatch: pytest.MonkeyPatch, folder: Path, here: str) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of two nodes with 2 GPUs each, on a machine with the GPUs `here`."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", here)
    pods = [Pod(group="g", replicas=2, start={"num-gpus": count}, environment={}) for count in ("0", "2")]
    made = LocalCluster(Cluster(name="c", service="c", head=pods[0], workers=(pods[1],)), "c", folder, None)
    made.ray = "127.0.0.1:1"
    place = Place(name="c-0", address="127.0.0.1", isolated=False)
    given = [made.environment(place, pod) for pod in (pods[0], pods[1], pods[1])]
    assert {environment.get(LOGICAL_GPUS) for environment in given} == {"1" if made.logical_gpus else None}
    return [environment.get("CUDA_VISIBLE_DEVICES") for environment in given[1:]]


def test_gpus_are_distributed_if_there_are_enough_and_only_declared_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert gpus_of_nodes(monkeypatch, tmp_path, "4,5,6,7") == ["4,5", "6,7"]
    assert gpus_of_nodes(monkeypatch, tmp_path, "0,1,2") == [None, None]
    assert gpus_of_nodes(monkeypatch, tmp_path, "") == [None, None]


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
def test_scale_out_of_range_is_rejected(scale: float) -> None:
    with pytest.raises(InputError, match=rf"--scale is {scale}"):
        Settings(scale=scale)


def test_isolation_without_permission_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.local.can_isolate", lambda: False)
    with (
        pytest.raises(InputError, match="--isolated"),
        local_cluster(Settings(isolated=True)),
    ):
        pass
