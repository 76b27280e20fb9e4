"""A cluster of several nodes on this machine: jobs run on it, nodes come and go, and nothing of it stays behind."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes

from cluster.local import LocalCluster, find_processes
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


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_the_command_ends_with_all_that_it_started(number: int) -> None:
    options = ["--nodes", "0", *(["--isolated"] if ISOLATED else [])]
    command = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", *options], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert command.stdout
        address = command.stdout.readline().split()[1].removeprefix("RAY_ADDRESS=")
        (head,) = alive(address)
        name = head.rpartition("-")[0]
        assert left_of(name)
    finally:
        command.send_signal(number)
        command.communicate()
    assert command.returncode == 0
    assert not left_of(name)
