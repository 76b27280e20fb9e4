"""The manifests as kubectl would apply them, and the pods that they make."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
SERVICE = "rayservice.yaml"
FILES = ["raycluster.yaml", "rayjob.yaml", "rayjob-kueue.yaml", "rayjob-tune.yaml", SERVICE]
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
NAMES = FILES + OVERLAYS
"""Everything that a user applies, but monitoring/."""

Object = dict[str, Any]


def arguments(name: str) -> list[str]:
    """What kubectl apply is told for one of NAMES."""
    return ["-f", str(K8S / name)] if name in FILES else ["-k", str(K8S / "overlays" / name)]


@cache
def objects(name: str) -> list[Object]:
    """The objects of one of NAMES; overlays are rendered by kubectl's own kustomize."""
    if name in FILES:
        return list(yaml.safe_load_all((K8S / name).read_text()))
    return list(yaml.safe_load_all(kubectl("kustomize", str(K8S / "overlays" / name))))


def kubectl(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What kubectl prints; fails with its errors, and its warnings, as well as where it is missing."""
    if shutil.which("kubectl") is None:
        pytest.fail("kubectl (1.27 or newer, for its kustomize) is missing: https://kubernetes.io/docs/tasks/tools")
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def kind(name: str, *kinds: str) -> list[Object]:
    """The objects of some kinds."""
    return [found for found in objects(name) if found["kind"] in kinds]


def ray_object(name: str) -> Object:
    """The one object that KubeRay makes a cluster from."""
    (found,) = kind(name, "RayCluster", "RayJob", "RayService")
    return found


def cluster_spec(name: str) -> Object:
    """The spec of the RayCluster, or of that of the RayJob or RayService."""
    spec = ray_object(name)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def serve_config() -> Object:
    """What Ray Serve is told by the RayService."""
    return yaml.safe_load(ray_object(SERVICE)["spec"]["serveConfigV2"])


def pods(name: str) -> dict[str, Object]:
    """Every pod template by what it is for, as a Pod."""
    spec = cluster_spec(name)
    templates = {"head": spec["headGroupSpec"]["template"]}
    templates |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    for found in objects(name):
        if "submitterPodTemplate" in found.get("spec", {}):
            templates["submitter"] = found["spec"]["submitterPodTemplate"]
        elif found["kind"] in ("Deployment", "Job"):
            templates[found["metadata"]["name"]] = found["spec"]["template"]
    return {
        of: {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": of, "namespace": "deblur"} | template.get("metadata", {}),
            "spec": template["spec"],
        }
        for of, template in templates.items()
    }


def containers(name: str) -> dict[str, Object]:
    """Every container by the pod that it is in; each pod of ours has one, and one more with an autoscaler."""
    found = {of: container for of, pod in pods(name).items() for container in pod["spec"]["containers"]}
    assert len(found) == len(pods(name))
    if "autoscalerOptions" in cluster_spec(name):
        # KubeRay builds the container, with the head's image and these.
        options = cluster_spec(name)["autoscalerOptions"]
        found["autoscaler"] = {key: options[key] for key in ("resources", "securityContext", "volumeMounts")}
    return found


def volumes(pod: Object) -> dict[str, Object]:
    """The volumes of a pod by name."""
    return {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
