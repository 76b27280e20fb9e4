"""Fixtures that all tests share (an S3 server, the service), and the marker of tests that need more than Python."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch
from hypothesis import settings

from benchmarks.s3_server import s3_server
from tests.service import running_service, write_model

settings.register_profile("quick", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # one worker per core; not by OMP_NUM_THREADS, which the tests' Ray workers would inherit

# Fixtures that start a Ray cluster, and those that start something else.
CLUSTER_FIXTURES = {
    "autoscaled",
    "bench",
    "cluster",
    "four_cpus",
    "logical_gpu",
    "rehearsal",
    "two_cpus",
    "two_nodes",
}
SERVICE_FIXTURES = {"browser", "prometheus", "service"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks a test as cluster by its fixtures, and as integration if it is one or has another service."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if fixtures & CLUSTER_FIXTURES:
        item.add_marker(pytest.mark.cluster)
    if fixtures & SERVICE_FIXTURES or item.get_closest_marker("cluster"):
        item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session", name="s3_server")
def s3_server_fixture() -> Iterator[dict[str, str]]:
    """The AWS variables of an S3 server, one per xdist worker."""
    with s3_server() as variables:
        yield variables


@pytest.fixture
def bucket(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty s3://BUCKET; sets the AWS variables of this process."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def service_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generator.safetensors of `service`."""
    return write_model(tmp_path_factory.mktemp("model") / "generator.safetensors")


@pytest.fixture(scope="session")
def service(service_model: Path) -> Iterator[str]:
    """The address of a service with one replica that accepts bodies of 4 MB, uploaded within 3 s."""
    limits = {"GATE_BODY_BYTES": "4000000", "GATE_UPLOAD_S": "3"}
    with running_service(service_model, service_model.with_name("log"), **limits) as address:
        yield address
