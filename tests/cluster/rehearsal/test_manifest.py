"""Manifests as KubeRay reads them: commands as in its own tests, environments, and errors."""

import base64
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from cluster.rehearsal.manifest import Cluster, Pod, quantity, read_cluster, start_command

Object = dict[str, Any]
SERVICE = "raycluster-sample-head-svc.default.svc.cluster.local"


def group(container: Object | None = None, **more: Any) -> Object:
    return {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray"} | (container or {})]}}} | more


def ray_cluster(head: Object | None = None, *workers: Object, **spec: Any) -> Object:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "raycluster-sample"},
        "spec": {"headGroupSpec": head or group(), "workerGroupSpecs": list(workers)} | spec,
    }


def worker(container: Object | None = None, **more: Any) -> Object:
    return group(container, **{"groupName": "small-group", "replicas": 1} | more)


def config_map(name: str, **data: str) -> Object:
    return {"kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> Object:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"kind": "Secret", "metadata": {"name": name}, "data": encoded}


class Read:
    """Reads a manifest made of objects."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cluster.yaml"

    def __call__(self, *objects: Object, shell: dict[str, str] | None = None, **parameters: dict[str, str]) -> Cluster:
        self.path.write_text(yaml.safe_dump_all(objects))
        return read_cluster(self.path, shell or {}, **{"head": {}, "workers": {}} | parameters)

    def head(self, container: Object, *others: Object, shell: dict[str, str] | None = None) -> Pod:
        return self(ray_cluster(group(container)), *others, shell=shell).head

    def worker(self, container: Object, **more: Any) -> Pod:
        return self(ray_cluster(None, worker(container, **more))).workers[0]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return Read(tmp_path)


# ---- commands


def options(command: str) -> set[str]:
    return set(command.split())


def test_head_command_is_that_of_kuberay(read: Read) -> None:
    # As in TestBuildPod_WithNoCPULimits.
    resources = {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    expected = """ray start --head --block --dashboard-agent-listen-port=52365 --memory=1073741824 --num-cpus=2
        --metrics-export-port=8080 --dashboard-host=0.0.0.0"""
    command = start_command(read.head({"resources": resources}).start, is_head=True)
    assert options(command) == options(expected)
    assert command.startswith("ray start --head --block ")


def test_worker_command_is_that_of_kuberay(read: Read) -> None:
    # As in TestBuildPod, whose group names a port as well.
    limits = {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "3"}
    expected = f"""ray start --block --dashboard-agent-listen-port=52365 --memory=1073741824 --num-cpus=1 --num-gpus=3
        --address={SERVICE}:6379 --port=6379 --metrics-export-port=8080"""
    pod = read.worker({"resources": {"limits": limits}}, rayStartParams={"port": "6379"})
    assert options(start_command(pod.start, is_head=False)) == options(expected)
    assert pod.environment["KUBERAY_GEN_RAY_START_CMD"] == start_command(pod.start, is_head=False)
    assert pod.gpus == 3


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"b": "2", "a": "1"}, "--a=1 --b=2"),
        ({"block": "true", "no-monitor": "False"}, "--block"),
        ({"log-color": "true", "include-dashboard": "false"}, "--include-dashboard=false --log-color=true"),
        ({"redis-password": "$REDIS_PASSWORD"}, "--redis-password=$REDIS_PASSWORD"),
    ],
)
def test_parameters_are_sorted_and_booleans_are_switches_but_for_a_few(
    parameters: dict[str, str], expected: str
) -> None:
    assert start_command(parameters, is_head=False) == f"ray start {expected}"  # convertParamMap


def test_ray_start_params_override_the_resources_of_the_container(read: Read) -> None:
    # TestSetMissingRayStartParams*: Address, MetricsExportPort, Block, DashboardHost.
    limits = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    own = {"address": "elsewhere:1", "num-cpus": "3", "num-gpus": "2", "metrics-export-port": "8081", "block": "false"}
    start = read.worker({"resources": {"limits": limits}}, rayStartParams=own).start
    assert start.items() >= (own | {"memory": str(32 << 30), "block": "true"}).items()
    assert "dashboard-host" not in start
    of_head = read(ray_cluster(group(rayStartParams={"dashboard-host": "localhost"}))).head.start
    assert of_head["dashboard-host"] == "localhost"
    assert "address" not in of_head


def test_resources_of_the_group_override_ray_start_params(read: Read) -> None:
    resources = {"CPU": "1500m", "memory": "1Gi", "nvidia.com/gpu": "2", "special": "3"}
    more = {"resources": resources, "labels": {"zone": "a", "disk": "fast"}, "rayStartParams": {"num-cpus": "9"}}
    start = read.worker({}, **more).start
    expected = {"num-cpus": "2", "memory": str(1 << 30), "num-gpus": "2", "labels": "disk=fast,zone=a"}
    assert start.items() >= (expected | {"resources": """'{"special": 3.0}'"""}).items()


@pytest.mark.parametrize("key", ["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-2g.32gb"])
def test_gpu_resources_have_several_names(read: Read, key: str) -> None:
    assert read.worker({"resources": {"limits": {"cpu": "1", key: 1, "example.com/none-gpu": 0}}}).gpus == 1
    assert read.worker({"resources": {"requests": {key: 1}}}).gpus == 0


def test_head_has_no_monitor_with_an_autoscaler(read: Read) -> None:
    # TestBuildPod_WithAutoscalerEnabled, and TestSetAutoscalerV2EnvVars.
    cluster = read(ray_cluster(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"}))
    assert " --no-monitor" in start_command(cluster.head.start, is_head=True)
    assert cluster.head.environment["RAY_enable_autoscaler_v2"] == "true"
    without = read(ray_cluster(autoscalerOptions={"version": "v2"})).head
    assert "no-monitor" not in without.start
    assert "RAY_enable_autoscaler_v2" not in without.environment


@pytest.mark.parametrize(
    ("fields", "replicas"),
    [
        ({"replicas": 4, "minReplicas": 4, "maxReplicas": 4}, 4),
        ({"replicas": 3, "numOfHosts": 2}, 6),
        ({"replicas": 1, "minReplicas": 2, "maxReplicas": 5}, 2),
        ({"replicas": 9, "minReplicas": 2, "maxReplicas": 5}, 5),
        ({"replicas": None, "minReplicas": 2}, 2),
        ({"replicas": 3, "suspend": True}, 0),
    ],
)
def test_replicas_are_within_min_and_max(read: Read, fields: Object, replicas: int) -> None:
    assert read.worker({}, **fields).replicas == replicas


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (8, "8"),
        (0.5, "0.5"),
        ("500m", "0.5"),
        ("32Gi", str(32 << 30)),
        ("1.5Ki", "1536"),
        ("1e3", "1000"),
        ("2E", "2e18"),
        ("100k", "1e5"),
        (".5", "0.5"),
    ],
)
def test_quantities_are_parsed_as_in_kubernetes(text: str, value: str) -> None:
    assert quantity(text) == Decimal(value)


# ---- environment


def test_pods_have_the_environment_that_kuberay_adds(read: Read) -> None:
    cluster = read(ray_cluster(None, worker()))
    assert cluster.service == SERVICE
    both = {"RAY_CLUSTER_NAME": "raycluster-sample", "RAY_CLUSTER_NAMESPACE": "default", "RAY_PORT": "6379"}
    both |= {"RAY_USAGE_STATS_KUBERAY_IN_USE": "1", "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1"}
    head, pod = cluster.head.environment, cluster.workers[0].environment
    assert head.items() >= (both | {"RAY_ADDRESS": "127.0.0.1:6379", "RAY_NODE_TYPE_NAME": "headgroup"}).items()
    assert pod.items() >= (both | {"RAY_ADDRESS": f"{SERVICE}:6379", "RAY_NODE_TYPE_NAME": "small-group"}).items()
    assert {"FQ_RAY_IP", "RAY_IP"} & set(head) == set()
    assert (pod["FQ_RAY_IP"], pod["RAY_IP"]) == (SERVICE, "raycluster-sample-head-svc")
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & {*head, *pod}


def test_port_of_the_head_is_in_the_environment_of_all_pods(read: Read) -> None:
    head = group(rayStartParams={"port": "9999"}, headService={"metadata": {"name": "front"}})
    for cluster, port in (
        (read(ray_cluster(head, worker())), "9999"),
        (read(ray_cluster(head, worker()), head={"port": "1234"}, workers={"metrics-export-port": "0"}), "1234"),
    ):
        assert cluster.head.start["port"] == port
        assert cluster.head.environment["RAY_ADDRESS"] == f"127.0.0.1:{port}"
        assert cluster.workers[0].start["address"] == f"front.default.svc.cluster.local:{port}"
        assert cluster.workers[0].environment["RAY_PORT"] == port
    assert cluster.workers[0].start["metrics-export-port"] == "0"


def test_token_authentication_is_read_from_the_manifest(read: Read) -> None:
    cluster = read(ray_cluster(None, worker(), authOptions={"mode": "token"}))
    assert cluster.token
    assert {pod.environment["RAY_AUTH_MODE"] for pod in (cluster.head, *cluster.workers)} == {"token"}
    assert not read(ray_cluster(authOptions={"mode": "disabled"})).token


def test_container_overrides_some_variables_of_kuberay(read: Read) -> None:
    own = {"RAY_PORT": "1", "RAY_ADDRESS": "a", "RAY_AUTH_MODE": "b", "RAY_CLUSTER_NAME": "c"}
    env = [{"name": name, "value": value} for name, value in own.items()]
    environment = read(ray_cluster(group({"env": env}), authOptions={"mode": "token"})).head.environment
    assert environment.items() >= (own | {"RAY_CLUSTER_NAME": "raycluster-sample"}).items()
    # Kubernetes reads envFrom by itself, later: KubeRay does not see what it will set.
    config = config_map("config", RAY_PORT="1")
    assert read.head({"envFrom": [{"configMapRef": {"name": "config"}}]}, config).environment["RAY_PORT"] == "6379"


def test_env_overrides_env_from_and_later_sources_override_earlier_ones(read: Read) -> None:
    container = {
        "env": [{"name": "A", "value": "of env"}],
        "envFrom": [
            {"configMapRef": {"name": "config"}},
            {"secretRef": {"name": "keys"}},
            {"prefix": "P_", "configMapRef": {"name": "config"}},
            {"secretRef": {"name": "missing", "optional": True}},
        ],
    }
    environment = read.head(container, config_map("config", A="1", B="1", C="1"), secret("keys", B="2")).environment
    assert {key: environment.get(key) for key in ("A", "B", "C", "P_A")} == {
        "A": "of env",
        "B": "2",
        "C": "1",
        "P_A": "1",
    }


def test_env_entries_refer_to_secrets_fields_and_each_other(read: Read) -> None:
    env: list[Object] = [
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
        {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "none", "optional": True}}},
        {"name": "SPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "CLUSTER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}}},
        {"name": "URL", "value": "s3://$(KEY)/$(A)/$(NONE)/$$(A)"},
        {"name": "EMPTY"},
    ]
    from_config = {"envFrom": [{"configMapRef": {"name": "config"}}]}
    found = read.head({"env": env} | from_config, config_map("config", A="1"), secret("keys", key="k")).environment
    expected = {"KEY": "k", "SPACE": "default", "CLUSTER": "raycluster-sample", "EMPTY": ""}
    assert found.items() >= (expected | {"URL": "s3://k/1/$(NONE)/$(A)"}).items()
    assert "MAYBE" not in found


def test_shell_overrides_config_maps_and_secrets_but_not_literal_values(read: Read) -> None:
    container = {
        "env": [
            {"name": "LITERAL", "value": "manifest"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "key"}}},
        ],
        "envFrom": [{"configMapRef": {"name": "config"}}],
    }
    shell = {"LITERAL": "shell", "KEY": "shell", "BUCKET": "shell", "OTHER": "shell"}
    found = read.head(container, config_map("config", BUCKET="config"), shell=shell).environment
    assert (found["LITERAL"], found["KEY"], found["BUCKET"]) == ("manifest", "shell", "shell")
    assert "OTHER" not in found


def test_names_and_addresses_are_resolved_when_a_pod_starts(read: Read) -> None:
    env: list[Object] = [
        {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "BOTH", "value": "$(ME)@$(IP)"},
        {"name": "SHORT", "value": "http://raycluster-sample-head-svc:8265"},
        {"name": "MIDDLE", "value": "raycluster-sample-head-svc.default.svc:10001"},
        {"name": "OTHERS", "value": "my-raycluster-sample-head-svc raycluster-sample-head-svc.example.com"},
    ]
    cluster = read(ray_cluster(None, worker({"env": env})))
    where = {"head": "10.0.0.2", "name": "node-1", "address": "10.0.0.3"}
    found = cluster.resolved(cluster.workers[0].environment, **where)
    assert (found["BOTH"], found["RAY_CLOUD_INSTANCE_ID"]) == ("node-1@10.0.0.3", "node-1")
    assert (found["SHORT"], found["MIDDLE"]) == ("http://10.0.0.2:8265", "10.0.0.2:10001")
    assert (found["FQ_RAY_IP"], found["RAY_IP"], found["RAY_ADDRESS"]) == ("10.0.0.2", "10.0.0.2", "10.0.0.2:6379")
    assert found["OTHERS"] == env[-1]["value"]
    assert cluster.resolved(cluster.workers[0].start, **where)["address"] == "10.0.0.2:6379"


# ---- the file


def test_cluster_of_a_ray_job_is_read(read: Read) -> None:
    job = {"kind": "RayJob", "metadata": {"name": "train", "namespace": "ml"}}
    job["spec"] = {"entrypoint": "true", "rayClusterSpec": ray_cluster(None, worker())["spec"]}
    cluster = read(job)
    assert cluster.service == "train-head-svc.ml.svc.cluster.local"
    assert [pod.group for pod in cluster.workers] == ["small-group"]


def test_cluster_of_a_ray_service_is_read_with_its_shorter_timeouts(read: Read) -> None:
    """As in setContainerEnvVars, where the creator is a RayService."""
    own = [{"name": "RAY_SERVE_KV_TIMEOUT_S", "value": "9"}]
    service = {"kind": "RayService", "metadata": {"name": "restore", "namespace": "ml"}}
    service["spec"] = {"serveConfigV2": "", "rayClusterConfig": ray_cluster(group({"env": own}), worker())["spec"]}
    cluster = read(service)
    assert cluster.service == "restore-head-svc.ml.svc.cluster.local"
    assert [pod.group for pod in cluster.workers] == ["small-group"]
    timeouts = {"RAY_timeout_ms_task_wait_for_death_info": "0", "RAY_gcs_server_request_timeout_seconds": "5"}
    for pod, seconds in ((cluster.head, "9"), (cluster.workers[0], "5")):
        assert pod.environment.items() >= (timeouts | {"RAY_SERVE_KV_TIMEOUT_S": seconds}).items()
    others = read(ray_cluster(None, worker()))
    assert not timeouts.keys() & {*others.head.environment, *others.workers[0].environment}


def test_config_map_of_another_namespace_is_ignored(read: Read) -> None:
    other = config_map("config", A="1")
    other["metadata"]["namespace"] = "other"
    with pytest.raises(InputError, match="ConfigMap config"):
        read.head({"envFrom": [{"configMapRef": {"name": "config"}}]}, other)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([config_map("config")], "has 0 objects of kind RayCluster, RayJob, RayService"),
        ([ray_cluster(), ray_cluster()], "has 2 objects of kind RayCluster, RayJob, RayService"),
        ([{"kind": "RayCluster", "metadata": {"name": "r"}, "spec": {}}], r".*headGroupSpec"),
        (
            [ray_cluster(group({"resources": {"limits": {"memory": "32GiB"}}}))],
            r".*32GiB",
        ),
        (
            [ray_cluster(group({"envFrom": [{"secretRef": {"name": "keys"}}]}))],
            r"envFrom: .*Secret keys",
        ),
        (
            [
                ray_cluster(
                    group({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]})
                ),
                config_map("c", other="1"),
            ],
            r"env A: .*ConfigMap c .*k",
        ),
        (
            [ray_cluster(group({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}))],
            r"env A: fieldRef .*spec\.nodeName",
        ),
    ],
)
def test_invalid_manifest_is_rejected_naming_the_place(read: Read, objects: list[Object], message: str) -> None:
    with pytest.raises(InputError, match=rf"cluster\.yaml: {message}"):
        read(*objects)


def test_file_that_is_no_manifest_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    for name, message in (("broken.yaml", "not YAML"), ("missing.yaml", "No such file"), (".", "Is a directory")):
        with pytest.raises(InputError, match=message):
            read_cluster(tmp_path / name, {}, {}, {})
