"""A cluster of several nodes on this machine: jobs run on it, nodes come and go, and nothing of it stays behind."""

import contextlib
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
    """Processes, namespaces and links of a cluster."""
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


def test_a_job_runs_on_the_head_sees_the_nodes_and_reaches_this_machine(cluster: LocalCluster, tmp_path: Path) -> None:
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


def test_a_killed_node_leaves_the_cluster_and_another_joins(cluster: LocalCluster) -> None:
    node = cluster.nodes[0]
    assert len(find_processes(node.name)) > 2
    node.kill()
    assert not find_processes(node.name)
    wait_until_dead(cluster, node.name)
    new = cluster.add_node()
    assert new in cluster.nodes
    assert alive(cluster.jobs) == {f"{cluster.name}-0", cluster.nodes[1].name, new.name}


def test_a_node_that_is_told_to_end_leaves_by_itself(cluster: LocalCluster) -> None:
    node = cluster.add_node()
    node.terminate()
    wait_until_dead(cluster, node.name)
    while find_processes(node.name):
        time.sleep(0.1)


def test_a_node_whose_link_is_cut_runs_on_and_is_missed(cluster: LocalCluster) -> None:
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
    """`python -m cluster.local`, which is told to end with the context."""
    started = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", *options], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGINT)
        started.communicate()


def exported(started: subprocess.Popen[str]) -> dict[str, str]:
    """What a shell would take from the first line that the command prints."""
    assert started.stdout
    exports, *variables = shlex.split(started.stdout.readline(), comments=True)
    assert exports == "export"
    return dict(variable.split("=", maxsplit=1) for variable in variables)


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_the_command_ends_with_all_that_it_started(number: int) -> None:
    with command("--nodes", "0", *(["--isolated"] if ISOLATED else [])) as started:
        (head,) = alive(exported(started)["RAY_ADDRESS"])
        name = head.rpartition("-")[0]
        assert left_of(name)
        started.send_signal(number)
        started.wait()
    assert started.returncode == 0
    assert not left_of(name)


# One worker with a GPU that is nowhere, and none that is small enough for this test by itself.
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
    """What the head answers, as JSON."""
    request = urllib.request.Request(f"{address}/{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def environments(name: str) -> list[dict[str, str]]:
    """Of all processes of a node."""
    found = [Path(f"/proc/{process}/environ").read_text().split("\0") for process in find_processes(name)]
    return [dict(line.split("=", maxsplit=1) for line in lines if "=" in line) for lines in found]


@pytest.mark.integration
def test_a_manifest_is_started_on_ports_that_are_free_and_asks_for_its_token(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(MANIFEST)
    with command("--manifest", str(tmp_path / "cluster.yaml"), "--scale", "0.1") as started:
        variables = exported(started)
        address, path = variables["RAY_ADDRESS"], Path(variables["RAY_AUTH_TOKEN_PATH"])
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
    """The GPUs that the processes of a head and two nodes of 2 GPUs see on a machine with those `here`."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", here)
    pods = [Pod(group="g", replicas=2, start={"num-gpus": count}, environment={}) for count in ("0", "2")]
    made = LocalCluster(Cluster(name="c", service="c", head=pods[0], workers=(pods[1],)), "c", folder, None)
    made.ray = "127.0.0.1:1"
    place = Place(name="c-0", address="127.0.0.1", isolated=False)
    given = [made.environment(place, pod) for pod in (pods[0], pods[1], pods[1])]
    assert {environment.get(LOGICAL_GPUS) for environment in given} == {"1" if made.gpus_by_name else None}
    return [environment.get("CUDA_VISIBLE_DEVICES") for environment in given[1:]]


def test_gpus_are_dealt_out_if_there_are_enough_and_are_names_alone_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert gpus_of_nodes(monkeypatch, tmp_path, "4,5,6,7") == ["4,5", "6,7"]
    assert gpus_of_nodes(monkeypatch, tmp_path, "0,1,2") == [None, None]
    assert gpus_of_nodes(monkeypatch, tmp_path, "") == [None, None]


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
def test_a_share_is_no_more_than_all(scale: float) -> None:
    with pytest.raises(InputError, match=rf"--scale is {scale}; it must be above 0, and at most 1"):
        Settings(scale=scale)


def test_isolation_that_is_not_permitted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.local.can_isolate", lambda: False)
    with (
        pytest.raises(InputError, match="--isolated: network namespaces need root"),
        local_cluster(Settings(isolated=True)),
    ):
        pass
