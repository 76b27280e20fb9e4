"""The service of k8s/rayservice.yaml on this machine: deployed as KubeRay does it, its workers restore pictures."""

import contextlib
import io
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import boto3
import PIL.Image
import pytest
import safetensors.torch
import torch

from benchmarks.fault_proxy import FaultProxy, Plan
from cluster.local import LocalCluster, Settings, free_port
from cluster.storage import open_store
from deblur.config import presets, recipes
from deblur.config.recipes import GeneratorRecipe
from deblur.models.build import build_generator
from tests.clusters import ISOLATED, isolated_cluster
from tests.datasets import picture
from tests.k8s.manifests import K8S, SERVICE, Object, containers, serve_config

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
WORKERS = 2
START_TIMEOUT_S = 240
PIXELS = picture(0, 37, 53)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The nodes of the manifest, and what Serve is told there."""

    cluster: LocalCluster
    bucket: str
    config: Object

    def serve(self, token: str | None, config: Object | None = None) -> Any:
        """KubeRay's requests to the head: what Serve does and, with a config, what it shall do."""
        body = None if config is None else json.dumps(config).encode()
        method = "GET" if config is None else "PUT"
        request = urllib.request.Request(f"{self.cluster.jobs}/api/serve/applications/", body, method=method)
        request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("X-Ray-Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    @property
    def token(self) -> str:
        assert self.cluster.token
        return self.cluster.token.read_text()

    def application(self) -> Object:
        """What Serve says of the one application."""
        (name,) = [application["name"] for application in self.config["applications"]]
        return self.serve(self.token)["applications"].get(name, {"status": "unknown", "message": ""})

    def runs(self) -> bool:
        application = self.application()
        assert application["status"] != "DEPLOY_FAILED", application["message"]
        return application["status"] == "RUNNING"

    def wait_until_ready(self) -> None:
        """Until the application runs, and then each worker's pod would be ready: its proxy answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.runs():
            assert time.monotonic() < deadline, self.application()
            time.sleep(1)
        while not all(answers_probe(proxy) for proxy in self.proxies()):
            assert time.monotonic() < deadline, self.serve(self.token)["proxies"]
            time.sleep(1)

    def proxies(self) -> list[str]:
        """Where the workers' proxies listen."""
        port = self.config["http_options"]["port"]
        return [f"http://{node.address}:{port}" for node in self.cluster.nodes]


def answers_probe(proxy: str) -> bool:
    """What KubeRay's readiness probe asks of a worker, beside the health of the node."""
    try:
        with urllib.request.urlopen(f"{proxy}/-/healthz", timeout=10) as answer:
            return b"success" in answer.read()
    except urllib.error.URLError:
        return False


class Unavailable(Exception):
    """503, after as many seconds as it asks to wait."""


def restore(proxy: str) -> PIL.Image.Image:
    sent = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(sent, "PNG")
    request = urllib.request.Request(f"{proxy}/restore", sent.getvalue(), {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return PIL.Image.open(io.BytesIO(answer.read()))
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        time.sleep(int(error.headers["Retry-After"]))
        raise Unavailable from error


def small_generator(seed: int) -> bytes:
    recipe = replace(presets.paper(), generator=GeneratorRecipe(filters=2, blocks=1, dropout=0.0))
    torch.manual_seed(seed)
    return safetensors.torch.save(build_generator(recipe).state_dict(), metadata={"recipe": recipes.to_json(recipe)})


@pytest.fixture(scope="module")
def rehearsal(s3_server: dict[str, str]) -> Iterator[Rehearsal]:
    """Running with one of two generators in a bucket, which the nodes reach through the proxy."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in s3_server.items():  # the shell's values win over those of the ConfigMap
            patch.setenv(variable, value)
        boto3.session.Session().client("s3").create_bucket(Bucket=name)
        for seed in (0, 1):
            open_store(f"s3://{name}").put(f"{seed}.safetensors", small_generator(seed))
        with (
            isolated_cluster(Settings(manifest=K8S / SERVICE, scale=0.1)) as cluster,
            FaultProxy(s3_server["AWS_ENDPOINT_URL"], Plan(), cluster.gateway) as proxy,
        ):
            config = serve_config()
            (application,) = config["applications"]
            application["args"]["model"] = f"s3://{name}/0.safetensors"
            # Where the nodes reach this machine is known when they are there.
            application["runtime_env"] = {"env_vars": {"AWS_ENDPOINT_URL": proxy.url}}
            if not ISOLATED:
                config["http_options"]["port"] = free_port()
            made = Rehearsal(cluster=cluster, bucket=f"s3://{name}", config=config)
            made.serve(made.token, config)
            made.wait_until_ready()
            yield made


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 403)])
def test_who_has_no_token_deploys_nothing(rehearsal: Rehearsal, token: str | None, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        rehearsal.serve(token, rehearsal.config | {"applications": []})
    assert refused.value.code == status
    assert rehearsal.application()["status"] == "RUNNING"


def test_each_worker_has_a_replica(rehearsal: Rehearsal) -> None:
    (deployment,) = rehearsal.application()["deployments"].values()
    replicas = deployment["replicas"]
    assert [replica["state"] for replica in replicas] == ["RUNNING"] * WORKERS
    assert len({replica["node_id"] for replica in replicas}) == WORKERS


def test_each_worker_restores_a_picture(rehearsal: Rehearsal) -> None:
    for proxy in rehearsal.proxies():
        restored = restore(proxy)
        assert restored.size == (53, 37)
        assert restored.tobytes() != PIXELS.tobytes()


@pytest.mark.skipif(not ISOLATED, reason="nodes that share an address share its ports")
def test_replicas_serve_their_metrics_where_the_manifest_declares_them(rehearsal: Rehearsal) -> None:
    declared = {port["name"]: port["containerPort"] for port in containers(SERVICE)["gpu-workers"]["ports"]}
    port = declared["rank0-metrics"]
    restore(rehearsal.proxies()[0])
    served = b""
    for node in rehearsal.cluster.nodes:
        with urllib.request.urlopen(f"http://{node.address}:{port}/metrics", timeout=10) as answer:
            served += answer.read()
    assert b"deblur_" in served  # of the replica that had the picture


def test_a_body_beyond_the_limit_is_refused_by_the_gate(rehearsal: Rehearsal) -> None:
    """The proxies have the gate that the manifest names: Serve's own take any body."""
    request = urllib.request.Request(f"{rehearsal.proxies()[0]}/restore", b"\0" * (33 << 20))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=120)
    assert refused.value.code == 413


def test_another_model_is_taken_and_no_request_fails_meanwhile(rehearsal: Rehearsal) -> None:
    before = restore(rehearsal.proxies()[0]).tobytes()
    (application,) = rehearsal.config["applications"]
    application["args"]["model"] = f"{rehearsal.bucket}/1.safetensors"
    rehearsal.serve(rehearsal.token, rehearsal.config)
    deadline = time.monotonic() + START_TIMEOUT_S
    while before in [restore(proxy).tobytes() for proxy in rehearsal.proxies()] or not rehearsal.runs():
        assert time.monotonic() < deadline, rehearsal.application()
    assert before not in [restore(rehearsal.proxies()[nth % WORKERS]).tobytes() for nth in range(20)]


def test_with_a_lost_worker_the_other_answers_until_there_are_two_again(rehearsal: Rehearsal) -> None:
    lost, _ = rehearsal.cluster.nodes
    lost.kill()
    rehearsal.cluster.nodes.remove(lost)
    (proxy,) = rehearsal.proxies()
    with contextlib.suppress(Unavailable):
        restore(proxy)  # had been sent to the replica that is gone
    restored = restore(proxy)
    assert restored.size == (53, 37)
    rehearsal.cluster.add_node()
    rehearsal.wait_until_ready()
    test_each_worker_restores_a_picture(rehearsal)
