"""What KubeRay makes of a RayCluster: command and environment of the Ray container of each pod.

Our reading of KubeRay 1.7 (ray-operator/controllers/ray/common/pod.go), to start nodes without Kubernetes. It ignores
probes, volumes, security contexts, custom commands, TPU and Neuron resources, TLS, fault tolerance of the head, and the
autoscaler's container.
"""

import base64
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import InputError

GCS_PORT = "6379"  # unless set in the head's parameters

# Placeholders for what is known when the pod starts.
_POD_NAME = "<metadata.name>"
_POD_IP = "<status.podIP>"

# `ray start` takes a value for these; all other boolean parameters are switches.
_BOOLEAN_OPTIONS = ("include-dashboard", "include-log-monitor", "log-color")
# KubeRay sets these only if the container does not.
_DEFAULTS = {
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE",
    "RAY_PORT",
    "RAY_USAGE_STATS_KUBERAY_IN_USE",
}
# Additional variables of a RayService.
_SERVICE_ENVIRONMENT = {
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_gcs_server_request_timeout_seconds": "5",
    "RAY_SERVE_KV_TIMEOUT_S": "5",
}
_DEFAULTS |= _SERVICE_ENVIRONMENT.keys()
_CLUSTERS = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""The field of a kind's spec that holds the cluster's spec; None: the spec itself."""
_KINDS = {
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
}
_RESOURCES = {"cpu": "num-cpus", "memory": "memory"}
_SUFFIXES = {suffix: Decimal(1000) ** power for power, suffix in enumerate(["n", "u", "m", "", *"kMGTPE"], -3)}
_SUFFIXES |= {f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", 1)}

Object = dict[str, Any]
Values = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Pod:
    """The Ray container of each pod of a group."""

    group: str
    replicas: int
    start: Values
    """Parameters of `ray start`; "true" or "false" for switches."""
    environment: Values

    @property
    def gpus(self) -> int:
        """How many each pod declares."""
        return int(self.start.get("num-gpus", "0"))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The pods of a RayCluster. They address the head by the name of its service."""

    name: str
    namespace: str = "default"
    service: str
    head: Pod
    workers: tuple[Pod, ...]
    """One per group."""
    token: bool = False
    """Whether requests are authenticated by a token."""

    def resolved(self, values: Values, *, head: str, name: str, address: str) -> Values:
        """Parameters or environment of the pod `name` at `address`; the head's address replaces its service."""
        service = self.service.partition(".")[0]
        pattern = rf"(?<![\w.-]){service}(\.{self.namespace}(\.svc(\.cluster\.local)?)?)?(?![\w.-])"
        known = {_POD_NAME: name, _POD_IP: address}
        return {
            key: re.sub("|".join(known), lambda found: known[found[0]], re.sub(pattern, head, value))
            for key, value in values.items()
        }


def read_cluster(path: Path, shell: Mapping[str, str], head: Values, workers: Values) -> Cluster:
    """The RayCluster of a file, or that of its RayJob or RayService.

    `head` and `workers` are parameters that override rayStartParams; variables of `shell` override those of ConfigMaps
    and Secrets. Raises InputError if the pods cannot be started from the file.
    """
    try:
        documents = _documents(path)
        owner = _owner(documents)
        context = _context(owner, documents, shell, head)
        groups = _spec(owner).get("workerGroupSpecs") or []
        return Cluster(
            name=context.name,
            namespace=context.namespace,
            service=context.service,
            head=_head(context, _spec(owner), head),
            workers=tuple(_worker(context, group, workers) for group in groups),
            token=context.token,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: invalid for KubeRay ({error!r}); see `kubectl apply --dry-run=server`") from error


def start_command(start: Values, *, is_head: bool) -> str:
    """The `ray start` command of a pod, quoted for a shell (generateRayStartCommand, convertParamMap)."""
    parts = ["ray start --head" if is_head else "ray start"]
    for key, value in sorted(start.items()):
        if value.lower() not in ("true", "false") or key in _BOOLEAN_OPTIONS:
            parts.append(f"--{key}={value}")
        elif value.lower() == "true":
            parts.append(f"--{key}")
    return " ".join(parts)


# ---- the file


def _documents(path: Path) -> list[Object]:
    try:
        return [document for document in yaml.safe_load_all(path.read_text()) if document]
    except OSError as error:
        raise InputError(f"{error.strerror}; give a file, or /dev/stdin after `kubectl kustomize ... |`") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}") from error


def _owner(documents: list[Object]) -> Object:
    found = [document for document in documents if document.get("kind") in _CLUSTERS]
    if len(found) != 1:
        raise InputError(f"has {len(found)} objects of kind {', '.join(_CLUSTERS)}; give a file with exactly one")
    return found[0]


def _spec(owner: Object) -> Object:
    field = _CLUSTERS[owner["kind"]]
    spec: Object = owner["spec"][field] if field else owner["spec"]
    return spec


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What is common to the pods of a cluster."""

    name: str
    namespace: str
    service: str
    port: str
    token: bool
    is_service: bool
    """Whether it belongs to a RayService."""
    values: dict[tuple[str, str], Values]
    """Data of ConfigMaps and Secrets by kind and name."""
    shell: Mapping[str, str]


def _context(owner: Object, documents: list[Object], shell: Mapping[str, str], head: Values) -> _Context:
    name, namespace = owner["metadata"]["name"], owner["metadata"].get("namespace", "default")
    of_head = _spec(owner)["headGroupSpec"]
    service = (of_head.get("headService") or {}).get("metadata", {}).get("name") or f"{name}-head-svc"
    return _Context(
        name=name,
        namespace=namespace,
        service=f"{service}.{namespace}.svc.cluster.local",
        port=(_start_params(of_head) | head).get("port", GCS_PORT),
        token=(_spec(owner).get("authOptions") or {}).get("mode") == "token",
        is_service=owner["kind"] == "RayService",
        values={
            (document["kind"], document["metadata"]["name"]): _data(document)
            for document in documents
            if document.get("kind") in ("ConfigMap", "Secret")
            and document["metadata"].get("namespace", "default") == namespace
        },
        shell=shell,
    )


def _data(document: Object) -> Values:
    data = _texts(document.get("data"))
    if document["kind"] == "ConfigMap":
        return data
    return {key: base64.b64decode(value).decode() for key, value in data.items()} | _texts(document.get("stringData"))


def _texts(values: Object | None) -> Values:
    return {key: str(value) for key, value in (values or {}).items()}


# ---- pods


def _head(context: _Context, spec: Object, parameters: Values) -> Pod:
    group, added = spec["headGroupSpec"], {}
    start = {"dashboard-host": "0.0.0.0"} | _parameters(group) | parameters  # noqa: S104  # as KubeRay sets it
    if spec.get("enableInTreeAutoscaling"):
        start["no-monitor"] = "true"
        if version := (spec.get("autoscalerOptions") or {}).get("version"):
            added["RAY_enable_autoscaler_v2"] = "true" if version == "v2" else "false"
    added |= _added(context, "headgroup", f"127.0.0.1:{context.port}", start_command(start, is_head=True))
    return Pod(
        group="headgroup",
        replicas=1,
        start=start,
        environment=_environment(context, group["template"], added, {"ray.io/node-type": "head"}),
    )


def _worker(context: _Context, group: Object, parameters: Values) -> Pod:
    name, address = group["groupName"], f"{context.service}:{context.port}"
    start = {"address": address} | _parameters(group) | parameters
    added = {"FQ_RAY_IP": context.service, "RAY_IP": context.service.partition(".")[0]}
    added |= _added(context, name, address, start_command(start, is_head=False))
    return Pod(
        group=name,
        replicas=_replicas(group),
        start=start,
        environment=_environment(context, group["template"], added, {"ray.io/node-type": "worker"}),
    )


def _replicas(group: Object) -> int:
    """`replicas` within minReplicas and maxReplicas (GetWorkerGroupDesiredReplicas)."""
    if group.get("suspend"):
        return 0
    replicas = max(int(group.get("replicas") or 0), int(group.get("minReplicas") or 0))
    return min(replicas, int(group.get("maxReplicas", replicas))) * int(group.get("numOfHosts", 1))


# ---- parameters of `ray start`


def _start_params(group: Object) -> Values:
    return _texts(group.get("rayStartParams"))


def _parameters(group: Object) -> Values:
    """Common to head and workers (setMissingRayStartParams, updateRayStartParamsResources, ...Labels)."""
    missing = {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"}
    labels = ",".join(f"{key}={value}" for key, value in sorted((group.get("labels") or {}).items()))
    explicit = _group_resources(group.get("resources") or {}) | ({"labels": labels} if labels else {})
    return (
        missing
        | _container_resources(_container(group["template"]))
        | _start_params(group)
        | explicit
        | {"block": "true"}
    )


def _container_resources(container: Object) -> Values:
    """From its limits, and for CPUs from its requests if there is no limit."""
    limits = (container.get("resources") or {}).get("limits") or {}
    requests = (container.get("resources") or {}).get("requests") or {}
    found = {
        "num-cpus": quantity(limits.get("cpu", 0)) or quantity(requests.get("cpu", 0)),
        "memory": quantity(limits.get("memory", 0)),
        "num-gpus": next(
            (quantity(limits[key]) for key in sorted(limits) if _is_gpu(key) and quantity(limits[key])), 0
        ),
    }
    return {key: str(math.ceil(value)) for key, value in found.items() if value}


def _group_resources(resources: Object) -> Values:
    """From the group's own field `resources`."""
    names = {key: _RESOURCES.get(key.lower(), "num-gpus" if _is_gpu(key.lower()) else "") for key in resources}
    found = {name: str(math.ceil(quantity(resources[key]))) for key, name in names.items() if name}
    others = {key: float(quantity(resources[key])) for key, name in sorted(names.items()) if not name}
    return found | ({"resources": shlex.quote(json.dumps(others))} if others else {})


def _is_gpu(resource: str) -> bool:
    return resource.endswith("gpu") or re.search(r"nvidia\.com/mig-\d+g\.\d+gb$", resource) is not None


def quantity(text: str | int | float) -> Decimal:
    """A Kubernetes quantity: 8, 0.5, 500m, 32Gi, 1e3."""
    parts = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(\D*))", str(text))
    if parts is None or (parts[3] or "") not in _SUFFIXES:
        raise InputError(f"{text} is not a quantity; write one such as 8, 500m or 32Gi")
    return Decimal(parts[1] + (parts[2] or "")) * _SUFFIXES[parts[3] or ""]


# ---- environment


def _added(context: _Context, group: str, address: str, command: str) -> Values:
    """What KubeRay adds to each container (setContainerEnvVars, SetContainerTokenAuthEnvVars)."""
    added = {
        "RAY_CLUSTER_NAME": context.name,
        "RAY_CLUSTER_NAMESPACE": context.namespace,
        "RAY_CLOUD_INSTANCE_ID": _POD_NAME,
        "RAY_NODE_TYPE_NAME": group,
        "KUBERAY_GEN_RAY_START_CMD": command,
        "RAY_PORT": context.port,
        "RAY_ADDRESS": address,
        "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",
    }
    if context.is_service:
        added |= _SERVICE_ENVIRONMENT
    if context.token:
        added["RAY_AUTH_MODE"] = "token"
    return added


def _environment(context: _Context, template: Object, added: Values, labels: Values) -> Values:
    """Of the first container. Later values override earlier ones, and `env` overrides `envFrom`."""
    container = _container(template)
    fields = _fields(context, added["RAY_NODE_TYPE_NAME"], template, labels)
    found: Values = {}
    for source in container.get("envFrom") or []:
        found |= _sourced(context, source)
    names = {entry["name"] for entry in container.get("env") or []}
    for entry in container.get("env") or []:
        value = _value(context, entry, fields)
        if value is not None:
            found[entry["name"]] = _expand(value, found) if "valueFrom" not in entry else value
    return found | {name: value for name, value in added.items() if name not in names & _DEFAULTS}


def _container(template: Object) -> Object:
    container: Object = template["spec"]["containers"][0]  # KubeRay's rule: the first is Ray's
    return container


def _fields(context: _Context, group: str, template: Object, labels: Values) -> Values:
    labels = _texts((template.get("metadata") or {}).get("labels")) | labels
    labels |= {"ray.io/cluster": context.name, "ray.io/group": group}
    fields = {"metadata.name": _POD_NAME, "metadata.namespace": context.namespace, "status.podIP": _POD_IP}
    return fields | {f"metadata.labels['{label}']": value for label, value in labels.items()}


def _value(context: _Context, entry: Object, fields: Values) -> str | None:
    """Of an entry of `env`; None if it refers to something optional that is missing."""
    name = entry["name"]
    if "valueFrom" not in entry:
        return str(entry.get("value", ""))
    ((kind, reference),) = entry["valueFrom"].items()
    if kind == "fieldRef" and reference["fieldPath"] in fields:
        return fields[reference["fieldPath"]]
    if kind not in _KINDS:
        raise InputError(f"env {name}: {kind} {reference} is not supported here; write a value")
    data = context.values.get((_KINDS[kind], reference["name"]), {})
    value = context.shell.get(name, data.get(reference["key"]))
    if value is None and not reference.get("optional"):
        raise InputError(
            f"env {name}: the file has no {_KINDS[kind]} {reference['name']} with the key {reference['key']}; add it, "
            f"or set {name} in your shell"
        )
    return value


def _sourced(context: _Context, source: Object) -> Values:
    """The variables of an entry of `envFrom`."""
    ((kind, reference),) = [(key, value) for key, value in source.items() if key != "prefix"]
    data = context.values.get((_KINDS[kind], reference["name"]))
    if data is None and not reference.get("optional"):
        raise InputError(f"envFrom: the file has no {_KINDS[kind]} {reference['name']}; add it, or make it optional")
    variables = {source.get("prefix", "") + key: value for key, value in (data or {}).items()}
    return {name: context.shell.get(name, value) for name, value in variables.items()}


def _expand(value: str, known: Values) -> str:
    """Replaces $(NAME) by variables set before; $$ is a dollar."""

    def replacement(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else known.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", replacement, value)
