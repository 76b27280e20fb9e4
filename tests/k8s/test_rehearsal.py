"""The cluster of k8s/raycluster.yaml on this machine: who shows no token is refused, and four ranks train on S3."""

import json
import os
import shlex
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from benchmarks.fault_proxy import FaultProxy, Plan
from cluster.local import RAY, LocalCluster, Settings
from cluster.storage import join, open_store
from deblur.training.run import Run
from tests.clusters import ISOLATED, isolated_cluster
from tests.datasets import write_dataset

MANIFEST = Path(__file__).parents[2] / "k8s/raycluster.yaml"
NODES = 4
SMALL = shlex.split("--recipe demo --images 48 --crop 24 --generator.filters 4 --generator.blocks 1 --critic.filters 4")
TRAIN = ["python", "-m", "deblur.train", "--nodes", str(NODES), "--run", "r", *SMALL]


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The cluster, and a bucket that its nodes reach through the proxy."""

    cluster: LocalCluster
    proxy: FaultProxy
    runs: str

    def request(self, path: str, token: str | None, body: bytes | None = None) -> Any:
        """What the head answers, as JSON."""
        request = urllib.request.Request(f"{self.cluster.jobs}/{path}", body)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def submit(self, *entrypoint: str) -> str:
        """`ray job submit` as a user types it, with what cluster.local prints in the environment; the log."""
        assert self.cluster.token
        variables = {"RAY_ADDRESS": self.cluster.jobs, "RAY_AUTH_MODE": "token"}
        variables["RAY_AUTH_TOKEN_PATH"] = str(self.cluster.token)
        # Of the job alone: where the nodes reach this machine is known when they are there.
        runtime = json.dumps({"env_vars": {"AWS_ENDPOINT_URL": self.proxy.url}})
        done = subprocess.run(
            [RAY, "job", "submit", "--runtime-env-json", runtime, "--", *entrypoint],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def rehearsal(s3_server: dict[str, str]) -> Iterator[Rehearsal]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    data, runs = f"s3://{name}/data", f"s3://{name}/runs"
    with pytest.MonkeyPatch.context() as patch:
        # The shell's values win over those of the ConfigMap.
        for variable, value in (s3_server | {"DEBLUR_DATA": data, "DEBLUR_RUNS": runs}).items():
            patch.setenv(variable, value)
        boto3.session.Session().client("s3").create_bucket(Bucket=name)
        write_dataset(open_store(data), train=43)
        with (
            isolated_cluster(Settings(manifest=MANIFEST, scale=0.1)) as cluster,
            FaultProxy(s3_server["AWS_ENDPOINT_URL"], Plan(), cluster.gateway) as proxy,
        ):
            yield Rehearsal(cluster=cluster, proxy=proxy, runs=runs)


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 403)])
def test_a_job_without_the_token_is_refused(rehearsal: Rehearsal, token: str | None, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        rehearsal.request("api/jobs/", token, json.dumps({"entrypoint": "true"}).encode())
    assert refused.value.code == status


def test_the_nodes_are_the_pods_of_the_manifest(rehearsal: Rehearsal) -> None:
    assert rehearsal.cluster.token
    listed = rehearsal.request("api/v0/nodes?detail=1", rehearsal.cluster.token.read_text())
    resources = [node["resources_total"] for node in listed["data"]["result"]["result"] if not node["is_head_node"]]
    assert [(found["CPU"], found["GPU"]) for found in resources] == [(1, 1)] * NODES
    if ISOLATED:
        assert rehearsal.cluster.jobs.endswith(":8265")
        assert rehearsal.cluster.ray.endswith(":6379")


def test_four_ranks_on_four_nodes_train_from_bucket_to_bucket(rehearsal: Rehearsal) -> None:
    log = rehearsal.submit(*TRAIN)
    assert "48/48 images" in log
    run = Run(join(rehearsal.runs, "r"))
    newest = run.checkpoints.newest()
    assert newest is not None
    assert newest[0].images_seen == 48
    assert {"generator.safetensors", "state.pt"} <= set(newest[0].files)
    assert run.read_metrics()[-1].items() >= {"images_seen": 48, "ranks": NODES, "restarts": 0}.items()
    targets = [target for entry in json.loads(run.store.get("targets.json")) for target in entry["targets"]]
    driver, *ranks = [target.rpartition(":")[0] for target in targets]
    assert len(ranks) == NODES
    if ISOLATED:
        assert driver == rehearsal.cluster.ray.rpartition(":")[0]
        assert set(ranks) == {node.address for node in rehearsal.cluster.nodes}
    check_reservation(rehearsal)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_search_on_four_nodes_leaves_what_it_found_in_the_bucket(rehearsal: Rehearsal) -> None:
    search = ["--search", "s", "--trials", "2", "--nodes-per-trial", "2", "--grace-images", "24", "--sampler", "tpe"]
    log = rehearsal.submit("python", "-m", "deblur.tune", *SMALL, *search)
    assert "2 concurrent trials" in log
    store = open_store(join(rehearsal.runs, "s"))
    trials = json.loads(store.get("search.json"))["trials"]
    assert {trial["state"] for trial in trials} <= {"finished", "stopped"}
    assert [trial["ranks"] for trial in trials] == [2, 2]
    best = json.loads(store.get("best.json"))
    assert best["trial"] in log
    assert {"report.html", "report.png"} <= set(store.list())
    assert Run(join(rehearsal.runs, "s", best["trial"])).images_seen() == best["images_seen"] == 48


def check_reservation(rehearsal: Rehearsal) -> None:
    """The ranks had reserved the GPUs by name, one on each node."""
    assert rehearsal.cluster.token
    listed = rehearsal.request("api/v0/placement_groups?detail=1", rehearsal.cluster.token.read_text())
    (group,) = listed["data"]["result"]["result"]
    assert [bundle["unit_resources"] for bundle in group["bundles"]] == [{"CPU": 1, "GPU": 1}] * NODES
    assert len({bundle["node_id"] for bundle in group["bundles"]}) == NODES
