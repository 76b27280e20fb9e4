"""A real API server takes everything that users apply: TEST_KUBECONFIG names one that may be thrown away.

It needs the definitions of KubeRay and of the Prometheus operator, and neither operator nor kubelet.
"""

import os

import pytest
import yaml

from tests.k8s.manifests import K8S, NAMES, arguments, kind, kubectl, objects

SERVER = os.environ.get("TEST_KUBECONFIG")
pytestmark = pytest.mark.skipif(SERVER is None, reason="TEST_KUBECONFIG names no API server that may be thrown away")
MONITORING = "monitoring"


def ask(*command: str) -> str:
    assert SERVER
    return kubectl(*command, environment=os.environ | {"KUBECONFIG": SERVER})


@pytest.fixture(scope="module", autouse=True)
def namespace() -> None:
    """The dry run of an object needs its namespace to be there."""
    (wanted,) = kind("raycluster.yaml", "Namespace")
    if not ask("get", "namespace", wanted["metadata"]["name"], "--ignore-not-found"):
        ask("create", "namespace", wanted["metadata"]["name"], "--save-config")  # else `apply` warns


@pytest.mark.parametrize("name", [*NAMES, MONITORING])
def test_everything_is_applied_without_a_warning(name: str) -> None:
    what = ["-k", str(K8S / MONITORING)] if name == MONITORING else arguments(name)
    ask("apply", "--dry-run=server", *what)
    ask("apply", *what)
    assert ask("diff", *what) == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_server_keeps_every_field(name: str) -> None:
    """A field that it does not know would be dropped, and nobody told."""
    ask("apply", *arguments(name))
    for wanted in objects(name):
        where = wanted["metadata"]
        namespaced = ["-n", where["namespace"]] if "namespace" in where else []
        found = yaml.safe_load(ask("get", wanted["kind"], where["name"], *namespaced, "-o", "yaml"))
        assert missing(wanted, found) == [], where["name"]


def missing(wanted: object, found: object, path: str = "") -> list[str]:
    """The paths of what is wanted and not found. Quantities are written in other ways: values are not compared."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return [path]
        return [
            gone
            for key, value in wanted.items()
            if value not in ({}, [])
            for gone in (missing(value, found[key], f"{path}/{key}") if key in found else [f"{path}/{key}"])
        ]
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return [path]
        pairs = enumerate(zip(wanted, found, strict=True))
        return [gone for index, (one, other) in pairs for gone in missing(one, other, f"{path}/{index}")]
    return []
