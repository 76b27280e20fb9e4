"""The manifests are what Kubernetes, KubeRay and Ray take, and mean what they say."""

import importlib
import importlib.util
import re
import tomllib
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from cluster import gate
from cluster.exporter import PORTS
from cluster.on_ray import internals
from cluster.on_ray.placement import AUTOSCALES, COLLECTIVE_TIMEOUT_S
from deblur import tune
from deblur.train import parse
from deblur.training.settings import TrainSettings
from tests.k8s.manifests import (
    K8S,
    NAMES,
    OVERLAYS,
    SERVICE,
    Object,
    cluster_spec,
    containers,
    kind,
    objects,
    pods,
    ray_object,
    serve_config,
    volumes,
)
from tests.k8s.schemas import schema_of

pytestmark = pytest.mark.integration  # kubectl renders the overlays

ROOT = K8S.parent
# The oldest that a cloud still gives, and the newest that there is.
KUBERNETES = ["1.30", kubernetes_validate.latest_version()]
UNITS = {"Mi": 2**20, "Gi": 2**30}
RAYS_DRAIN_S = 30  # RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S where nothing is said; Kubernetes' grace period as well


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\D*)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * (UNITS[unit] if unit else 1)


def value_of(container: Object, variable: str) -> str:
    (value,) = [entry["value"] for entry in container["env"] if entry["name"] == variable]
    return value


def groups(name: str) -> list[Object]:
    return cluster_spec(name)["workerGroupSpecs"]


def node_types(name: str) -> dict[str, Any]:
    """What Ray's own autoscaler for KubeRay understands of the cluster."""
    resource = {"metadata": {"name": "deblur", "namespace": "deblur"}, "spec": cluster_spec(name)}
    return autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]


def test_generated_manifests_are_current() -> None:
    spec = importlib.util.spec_from_file_location("manifests", K8S / "manifests.py")
    assert spec
    assert spec.loader
    manifests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(manifests)

    for path, text in manifests.generate().items():
        assert (K8S / path).read_text() == text, f"k8s/{path} is out of date: run `make manifests`"


def test_every_manifest_is_tested() -> None:
    files = {str(path.relative_to(K8S)) for path in K8S.rglob("*.yaml") if path.parent.name != "monitoring"}
    parts = {path for path in files if path.startswith(("base/", "overlays/", "templates/"))}
    assert files - parts == set(NAMES) - set(OVERLAYS)
    assert OVERLAYS == ["autoscaling", "cpu-smoke", "single-gpu", "spot"]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_takes_the_core_objects_and_pods(name: str, version: str) -> None:
    core = [found for found in objects(name) if "ray.io" not in found["apiVersion"]]
    assert len(core) >= 9
    for found in [*core, *pods(name).values()]:
        kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_kuberay_takes_its_objects(name: str) -> None:
    found = ray_object(name)
    jsonschema.validate(found, schema_of(f"ray.io_{found['kind'].lower()}s"))


def test_a_field_that_kuberay_does_not_know_is_found() -> None:
    (found,) = kind("raycluster.yaml", "RayCluster")
    wrong = found | {"spec": found["spec"] | {"headGroupSpecs": {}}}
    with pytest.raises(jsonschema.ValidationError, match="headGroupSpecs"):
        jsonschema.validate(wrong, schema_of("ray.io_rayclusters"))
    service = ray_object(SERVICE)
    wrong = service | {"spec": service["spec"] | {"serveConfig": {}}}
    with pytest.raises(jsonschema.ValidationError, match="'serveConfig' was unexpected"):
        jsonschema.validate(wrong, schema_of("ray.io_rayservices"))


@pytest.mark.parametrize(
    ("name", "group", "least", "most", "resources"),
    [
        ("raycluster.yaml", "gpu-workers", 4, 4, {"CPU": 8, "GPU": 1}),
        ("rayjob.yaml", "gpu-workers", 4, 4, {"CPU": 8, "GPU": 1}),
        ("rayjob-kueue.yaml", "gpu-workers", 4, 4, {"CPU": 8, "GPU": 1}),
        ("rayjob-tune.yaml", "gpu-workers", 4, 4, {"CPU": 8, "GPU": 1}),
        (SERVICE, "gpu-workers", 2, 2, {"CPU": 4, "GPU": 1}),
        ("single-gpu", "gpu-workers", 1, 1, {"CPU": 8, "GPU": 1}),
        ("spot", "gpu-workers", 4, 4, {"CPU": 8, "GPU": 1}),
        ("autoscaling", "gpu-workers", 0, 8, {"CPU": 8, "GPU": 1}),
        ("cpu-smoke", "cpu-workers", 2, 2, {"CPU": 1}),
    ],
)
def test_ray_reads_the_nodes_that_are_meant(
    name: str, group: str, least: int, most: int, resources: dict[str, int]
) -> None:
    found = node_types(name)
    assert found.keys() == {"headgroup", group}
    assert found["headgroup"]["resources"]["CPU"] == 0
    assert "GPU" not in found["headgroup"]["resources"]
    assert (found[group]["min_workers"], found[group]["max_workers"]) == (least, most)
    assert {key: found[group]["resources"].get(key) for key in resources} == resources
    assert ("GPU" in found[group]["resources"]) == ("GPU" in resources)
    assert [each["replicas"] for each in groups(name)] == [least]


@pytest.mark.parametrize("name", NAMES)
def test_versions_are_those_that_are_installed_and_built(name: str) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert cluster_spec(name)["rayVersion"] == pinned[1]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container.get("image") for of, container in containers(name).items() if of != "object-store"}
    assert images - {None} == {f"deblur:{ours}"}


@pytest.mark.parametrize("name", NAMES)
def test_a_worker_that_has_to_go_has_time_to_save(name: str) -> None:
    for group in groups(name):
        (container,) = group["template"]["spec"]["containers"]
        drain = int(value_of(container, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"))
        grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert 15 <= drain <= grace - 5  # 15 s: two checkpoints of a store that answers, and the ranks' leaving
        if name == "spot":
            assert grace <= RAYS_DRAIN_S - 5
        else:
            assert drain > RAYS_DRAIN_S


@pytest.mark.parametrize("name", [name for name in NAMES if name != SERVICE])
def test_a_collective_ends(name: str) -> None:
    head = containers(name)["head"]
    assert int(value_of(head, "RAY_TRAIN_COLLECTIVE_TIMEOUT_S")) == COLLECTIVE_TIMEOUT_S
    assert int(value_of(head, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S")) > 60  # Ray's own: too short for CUDA's start


@pytest.mark.parametrize("name", NAMES)
def test_memory_holds_what_is_put_into_it(name: str) -> None:
    spec = cluster_spec(name)
    for of, parameters in [
        ("head", spec["headGroupSpec"]["rayStartParams"]),
        *((group["groupName"], group["rayStartParams"]) for group in groups(name)),
    ]:
        pod, container = pods(name)[of], containers(name)[of]
        shared = bytes_of(volumes(pod)["shared-mem"]["emptyDir"]["sizeLimit"])
        assert volumes(pod)["shared-mem"]["emptyDir"]["medium"] == "Memory"
        assert {"name": "shared-mem", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert int(parameters["object-store-memory"]) < shared < bytes_of(container["resources"]["limits"]["memory"])


@pytest.mark.parametrize("name", NAMES)
def test_drivers_request_nodes_only_with_an_autoscaler(name: str) -> None:
    variables = {entry["name"]: entry.get("value") for entry in containers(name)["head"]["env"]}
    assert variables.get(AUTOSCALES) == ("1" if cluster_spec(name).get("enableInTreeAutoscaling") else None)


@pytest.mark.parametrize("name", NAMES)
def test_requests_equal_limits(name: str) -> None:
    for of, container in containers(name).items():
        assert container["resources"]["requests"] == container["resources"]["limits"], of


@pytest.mark.parametrize("name", NAMES)
def test_what_a_pod_may_write_is_mounted_and_no_more_than_it_may_hold(name: str) -> None:
    for of, pod in pods(name).items():
        mounted = {mount["name"] for container in pod["spec"]["containers"] for mount in container["volumeMounts"]}
        others = {"api-access"} if name == "autoscaling" else set()  # that of the autoscaler's container
        assert volumes(pod).keys() - others == mounted, of
        on_disk = [
            bytes_of(volume["emptyDir"]["sizeLimit"])
            for volume in volumes(pod).values()
            if "emptyDir" in volume and volume["emptyDir"].get("medium") != "Memory"
        ]
        limit = pod["spec"]["containers"][0]["resources"]["limits"].get("ephemeral-storage")
        if limit:
            assert sum(on_disk) < bytes_of(limit), of


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_declared_where_they_are_served_and_open_to_prometheus(name: str) -> None:
    (policy,) = [found for found in kind(name, "NetworkPolicy") if found["metadata"]["name"] == "metrics"]
    declared = {
        port["name"]: port["containerPort"]
        for of in ("head", groups(name)[0]["groupName"])
        for port in containers(name)[of]["ports"]
        if "metrics" in port["name"]
    }
    first = TrainSettings.metrics_port
    assert declared == {
        "metrics": 8080,
        "driver-metrics": first,
        "rank0-metrics": first + 1,
        "rank1-metrics": first + 2,
    }
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == set(declared.values())
    assert first + PORTS > max(declared.values())


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayjob-kueue.yaml"])
def test_a_job_trains_on_the_nodes_of_its_cluster_and_goes_on_after_a_retry(name: str) -> None:
    (job,) = kind(name, "RayJob")
    python, dash_m, module, *flags = job["spec"]["entrypoint"].split()
    assert (python, dash_m, module) == ("python", "-m", "deblur.train")
    assert parse(flags).nodes == sum(group["replicas"] for group in groups(name))
    assert parse(flags).run is None  # from recipe and dataset: the same in every retry
    assert job["spec"]["backoffLimit"] >= 3
    assert job["spec"]["shutdownAfterJobFinishes"]
    labels = job["metadata"].get("labels", {})
    assert ("kueue.x-k8s.io/queue-name" in labels) == job["spec"].get("suspend", False) == (name == "rayjob-kueue.yaml")


def test_a_search_has_trials_on_every_node_and_a_head_that_holds_them() -> None:
    (job,) = kind("rayjob-tune.yaml", "RayJob")
    python, dash_m, module, *flags = job["spec"]["entrypoint"].split()
    assert (python, dash_m, module) == ("python", "-m", "deblur.tune")
    settings, _ = tune.parse(flags)
    assert settings.search is None  # from recipe and dataset: the same in every retry
    assert settings.recipe.data.images
    at_once = sum(group["replicas"] for group in groups("rayjob-tune.yaml")) // settings.nodes_per_trial
    assert at_once == 4
    limits = containers("rayjob-tune.yaml")["head"]["resources"]["limits"]
    needed = at_once * 1.5e9 + bytes_of(containers("rayjob.yaml")["head"]["resources"]["limits"]["memory"])
    assert bytes_of(limits["memory"]) > needed
    assert job["spec"]["backoffLimit"] >= 3


def restorer() -> Object:
    """The one deployment of the service, as its manifest has it."""
    (application,) = serve_config()["applications"]
    (deployment,) = application["deployments"]
    return deployment


def test_ray_serve_takes_the_config_and_knows_every_field() -> None:
    # Its schema drops what it does not know.
    assert (
        ServeDeploySchema.model_validate(serve_config()).model_dump(mode="json", exclude_unset=True) == serve_config()
    )
    bounds = restorer()["autoscaling_config"]
    assert AutoscalingConfig(**bounds).model_dump(include=bounds.keys()) == bounds


def test_the_service_is_built_from_what_there_is() -> None:
    (application,) = serve_config()["applications"]
    module, _, builder = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), builder))
    assert application["route_prefix"] == "/"
    for of in ("head", "gpu-workers"):
        module, _, middlewares = value_of(containers(SERVICE)[of], internals.PROXY_MIDDLEWARES).partition(":")
        assert getattr(importlib.import_module(module), middlewares) is gate.middlewares


def test_every_worker_has_a_replica_and_none_is_left_over() -> None:
    (group,) = groups(SERVICE)
    worker = node_types(SERVICE)["gpu-workers"]["resources"]
    options = restorer()["ray_actor_options"]
    each = min(worker["GPU"] // options["num_gpus"], worker["CPU"] // options["num_cpus"])
    assert each >= 1
    bounds = restorer()["autoscaling_config"]
    assert bounds["min_replicas"] == group["replicas"]  # one without a replica is never ready
    assert bounds["max_replicas"] == each * group["replicas"]  # nothing makes more workers
    assert not cluster_spec(SERVICE).get("enableInTreeAutoscaling")


def test_requests_go_where_a_proxy_listens() -> None:
    options = serve_config()["http_options"]
    assert options["host"] == "0.0.0.0"  # its own 127.0.0.1 would be the pod's alone
    assert serve_config()["proxy_location"] == "EveryNode"
    for of in ("head", "gpu-workers"):
        # By this name KubeRay finds the port of the Service and of the probe.
        (port,) = [port for port in containers(SERVICE)[of]["ports"] if port["name"] == "serve"]
        assert port["containerPort"] == options["port"]
    assert ray_object(SERVICE)["spec"]["excludeHeadPodFromServeSvc"]
    assert len(ray_object(SERVICE)["metadata"]["name"]) <= 47  # KubeRay adds six to name the cluster


def test_the_service_reads_its_model_from_the_bucket_of_the_runs() -> None:
    (application,) = serve_config()["applications"]
    (config,) = kind(SERVICE, "ConfigMap")
    assert application["args"]["model"].startswith(f"{config['data']['DEBLUR_RUNS']}/")


def test_spot_is_where_the_head_never_is() -> None:
    def terms(of: str) -> list[list[Object]]:
        affinity = pods("spot")[of]["spec"]["affinity"]["nodeAffinity"]
        terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        return [term["matchExpressions"] for term in terms]

    (never,) = terms("head")
    assert {expression["operator"] for expression in never} == {"NotIn"}
    wanted = [expression for (expression,) in terms("gpu-workers")]
    assert {expression["operator"] for expression in wanted} == {"In"}
    assert [(each["key"], each["values"]) for each in wanted] == [(each["key"], each["values"]) for each in never]


def test_the_smoke_packs_where_it_trains() -> None:
    (config,) = kind("cpu-smoke", "ConfigMap")
    (service,) = kind("cpu-smoke", "Service")
    (port,) = service["spec"]["ports"]
    assert config["data"]["AWS_ENDPOINT_URL"] == f"http://{service['metadata']['name']}:{port['port']}"
    (script,) = containers("cpu-smoke")["pack-samples"]["args"]
    assert f"--out {config['data']['DEBLUR_DATA']} " in script
    assert all(config["data"][root].startswith("s3://deblur/") for root in ("DEBLUR_DATA", "DEBLUR_RUNS"))
    assert 'Bucket="deblur"' in script
    served = {entry["name"]: entry["containerPort"] for entry in containers("cpu-smoke")["object-store"]["ports"]}
    assert served[port["targetPort"]] == port["port"]
    store = pods("cpu-smoke")["object-store"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= store.items()
