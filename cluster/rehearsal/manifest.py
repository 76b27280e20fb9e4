"""What KubeRay makes of a RayCluster: the command and the environment of the Ray container of each pod.

Our reading of KubeRay 1.7 (ray-operator/controllers/ray/common/pod.go), for those who start nodes without Kubernetes.
Of a manifest it leaves out: probes, volumes, security contexts, commands of the containers' own, TPU and Neuron
resources, TLS, fault tolerance of the head, and the container of the autoscaler.
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

GCS_PORT = "6379"  # unless the head's parameters name another

# In an environment, for what is known when the pod starts.
_POD_NAME = "<metadata.name>"
_POD_IP = "<status.podIP>"

# `ray start` takes a value for these; all other parameters that are true or false are switches.
_NO_SWITCHES = ("include-dashboard", "include-log-monitor", "log-color")
# KubeRay sets these unless the container does.
_YIELDING = {
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE",
    "RAY_PORT",
    "RAY_USAGE_STATS_KUBERAY_IN_USE",
}
# Beside those of every cluster, where Ray Serve runs.
_OF_SERVICES = {
    "RAY_timeout_ms_task_wait_for_death_info": "0",
    "RAY_gcs_server_request_timeout_seconds": "5",
    "RAY_SERVE_KV_TIMEOUT_S": "5",
}
_YIELDING |= _OF_SERVICES.keys()
_CLUSTERS = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
"""Where in its spec a kind has the cluster's; None: it is the cluster's."""
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
    """Parameters of `ray start`; switches are true or false."""
    environment: Values

    @property
    def gpus(self) -> int:
        """How many each says it has."""
        return int(self.start.get("num-gpus", "0"))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The pods of a RayCluster. Where they name the head, they name its service."""

    name: str
    namespace: str = "default"
    service: str
    head: Pod
    workers: tuple[Pod, ...]
    """One for each group."""
    token: bool = False
    """Whether every request has to show a token."""

    def settled(self, values: Values, *, head: str, name: str, address: str) -> Values:
        """Parameters or environment of the pod of that name and address, with the head's address for its service."""
        service = self.service.partition(".")[0]
        pattern = rf"(?<![\w.-]){service}(\.{self.namespace}(\.svc(\.cluster\.local)?)?)?(?![\w.-])"
        known = {_POD_NAME: name, _POD_IP: address}
        return {
            key: re.sub("|".join(known), lambda found: known[found[0]], re.sub(pattern, head, value))
            for key, value in values.items()
        }


def read_cluster(path: Path, shell: Mapping[str, str], head: Values, workers: Values) -> Cluster:
    """The one RayCluster of a file, or the one of its RayJob or RayService.

    `head` and `workers` are parameters that win over the file's rayStartParams; a variable of `shell` wins over the
    value that a ConfigMap or a Secret has for it. Raises InputError where the file says too little to start the pods.
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
        raise InputError(f"{path}: KubeRay expects more ({error!r}); see `kubectl apply --dry-run=server`") from error


def start_command(start: Values, *, is_head: bool) -> str:
    """The `ray start` of a pod, as a shell takes it (generateRayStartCommand, convertParamMap)."""
    parts = ["ray start --head" if is_head else "ray start"]
    for key, value in sorted(start.items()):
        if value.lower() not in ("true", "false") or key in _NO_SWITCHES:
            parts.append(f"--{key}={value}")
        elif value.lower() == "true":
            parts.append(f"--{key}")
    return " ".join(parts)


# ---- the file


def _documents(path: Path) -> list[Object]:
    try:
        return [document for document in yaml.safe_load_all(path.read_text()) if document]
    except OSError as error:
        raise InputError(f"{error.strerror}; name a file, or /dev/stdin behind `kubectl kustomize`") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}") from error


def _owner(documents: list[Object]) -> Object:
    found = [document for document in documents if document.get("kind") in _CLUSTERS]
    if len(found) != 1:
        raise InputError(f"has {len(found)} objects of kind {', '.join(_CLUSTERS)}; name a file that has one")
    return found[0]


def _spec(owner: Object) -> Object:
    field = _CLUSTERS[owner["kind"]]
    return owner["spec"][field] if field else owner["spec"]


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What the pods of a cluster share."""

    name: str
    namespace: str
    service: str
    port: str
    token: bool
    serves: bool
    """Whether it is that of a RayService."""
    values: dict[tuple[str, str], Values]
    """Of ConfigMaps and Secrets, by kind and name."""
    shell: Mapping[str, str]


def _context(owner: Object, documents: list[Object], shell: Mapping[str, str], head: Values) -> _Context:
    name, namespace = owner["metadata"]["name"], owner["metadata"].get("namespace", "default")
    of_head = _spec(owner)["headGroupSpec"]
    service = (of_head.get("headService") or {}).get("metadata", {}).get("name") or f"{name}-head-svc"
    return _Context(
        name=name,
        namespace=namespace,
        service=f"{service}.{namespace}.svc.cluster.local",
        port=(_given(of_head) | head).get("port", GCS_PORT),
        token=(_spec(owner).get("authOptions") or {}).get("mode") == "token",
        serves=owner["kind"] == "RayService",
        values={
            (document["kind"], document["metadata"]["name"]): _held(document)
            for document in documents
            if document.get("kind") in ("ConfigMap", "Secret")
            and document["metadata"].get("namespace", "default") == namespace
        },
        shell=shell,
    )


def _held(document: Object) -> Values:
    data = _texts(document.get("data"))
    if document["kind"] == "ConfigMap":
        return data
    return {key: base64.b64decode(value).decode() for key, value in data.items()} | _texts(document.get("stringData"))


def _texts(values: Object | None) -> Values:
    return {key: str(value) for key, value in (values or {}).items()}


# ---- pods


def _head(context: _Context, spec: Object, parameters: Values) -> Pod:
    group, added = spec["headGroupSpec"], {}
    start = {"dashboard-host": "0.0.0.0"} | _parameters(group) | parameters
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
    """GetWorkerGroupDesiredReplicas: minReplicas and maxReplicas are kept to, whatever replicas is."""
    if group.get("suspend"):
        return 0
    wanted = max(group.get("replicas") or 0, group.get("minReplicas") or 0)
    return int(min(wanted, group.get("maxReplicas", wanted)) * group.get("numOfHosts", 1))


# ---- parameters of `ray start`


def _given(group: Object) -> Values:
    return _texts(group.get("rayStartParams"))


def _parameters(group: Object) -> Values:
    """What both kinds of pods have (setMissingRayStartParams, updateRayStartParamsResources, ...Labels)."""
    missing = {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"}
    labels = ",".join(f"{key}={value}" for key, value in sorted((group.get("labels") or {}).items()))
    explicit = _of_group(group.get("resources") or {}) | ({"labels": labels} if labels else {})
    return missing | _of_container(_container(group["template"])) | _given(group) | explicit | {"block": "true"}


def _of_container(container: Object) -> Values:
    """What its limits say, and of requests the CPUs."""
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


def _of_group(resources: Object) -> Values:
    """The group's own field `resources`."""
    names = {key: _RESOURCES.get(key.lower(), "num-gpus" if _is_gpu(key.lower()) else "") for key in resources}
    found = {name: str(math.ceil(quantity(resources[key]))) for key, name in names.items() if name}
    others = {key: float(quantity(resources[key])) for key, name in sorted(names.items()) if not name}
    return found | ({"resources": shlex.quote(json.dumps(others))} if others else {})


def _is_gpu(resource: str) -> bool:
    return resource.endswith("gpu") or re.search(r"nvidia\.com/mig-\d+g\.\d+gb$", resource) is not None


def quantity(text: str | int | float) -> Decimal:
    """A quantity of Kubernetes: 8, 0.5, 500m, 32Gi, 1e3."""
    parts = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|(\D*))", str(text))
    if parts is None or (parts[3] or "") not in _SUFFIXES:
        raise InputError(f"{text} is no quantity; write one such as 8, 500m or 32Gi")
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
    if context.serves:
        added |= _OF_SERVICES
    if context.token:
        added["RAY_AUTH_MODE"] = "token"
    return added


def _environment(context: _Context, template: Object, added: Values, labels: Values) -> Values:
    """What the first container gets: of two values for a name the later, `env` after `envFrom`."""
    container = _container(template)
    fields = _fields(context, added["RAY_NODE_TYPE_NAME"], template, labels)
    found: Values = {}
    for source in container.get("envFrom") or []:
        found |= _all_of(context, source)
    names = {entry["name"] for entry in container.get("env") or []}
    for entry in container.get("env") or []:
        value = _value(context, entry, fields)
        if value is not None:
            found[entry["name"]] = _expanded(value, found) if "valueFrom" not in entry else value
    return found | {name: value for name, value in added.items() if name not in names & _YIELDING}


def _container(template: Object) -> Object:
    return template["spec"]["containers"][0]  # KubeRay's rule: the first is Ray's


def _fields(context: _Context, group: str, template: Object, labels: Values) -> Values:
    labels = _texts((template.get("metadata") or {}).get("labels")) | labels
    labels |= {"ray.io/cluster": context.name, "ray.io/group": group}
    fields = {"metadata.name": _POD_NAME, "metadata.namespace": context.namespace, "status.podIP": _POD_IP}
    return fields | {f"metadata.labels['{label}']": value for label, value in labels.items()}


def _value(context: _Context, entry: Object, fields: Values) -> str | None:
    """Of an entry of `env`; None if what it refers to is optional and missing."""
    name = entry["name"]
    if "valueFrom" not in entry:
        return str(entry.get("value", ""))
    ((kind, reference),) = entry["valueFrom"].items()
    if kind == "fieldRef" and reference["fieldPath"] in fields:
        return fields[reference["fieldPath"]]
    if kind not in _KINDS:
        raise InputError(f"env {name}: {kind} {reference} has no meaning here; write a value")
    held = context.values.get((_KINDS[kind], reference["name"]), {})
    value = context.shell.get(name, held.get(reference["key"]))
    if value is None and not reference.get("optional"):
        raise InputError(
            f"env {name}: no {_KINDS[kind]} {reference['name']} with {reference['key']} is in the file; "
            f"add it, or set {name} in your shell"
        )
    return value


def _all_of(context: _Context, source: Object) -> Values:
    """Of an entry of `envFrom`."""
    ((kind, reference),) = [(key, value) for key, value in source.items() if key != "prefix"]
    held = context.values.get((_KINDS[kind], reference["name"]))
    if held is None and not reference.get("optional"):
        raise InputError(f"envFrom: no {_KINDS[kind]} {reference['name']} is in the file; add it, or make it optional")
    named = {source.get("prefix", "") + key: value for key, value in (held or {}).items()}
    return {name: context.shell.get(name, value) for name, value in named.items()}


def _expanded(value: str, known: Values) -> str:
    """With $(NAME) replaced by what was set before; $$ is a dollar."""

    def replacement(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else known.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", replacement, value)
