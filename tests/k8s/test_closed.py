"""The manifests are closed by default: pods without rights, policies that deny, no secret in clear, jobs by token."""

import re

import pytest

from tests.k8s.manifests import NAMES, SERVICE, Object, cluster_spec, containers, kind, objects, pods, volumes

pytestmark = pytest.mark.integration  # kubectl renders the overlays

LABELS = {
    "head": {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"},
    "worker": {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"},
    "server": {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker", "ray.io/serve": "true"},
    "excluded head": {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head", "ray.io/serve": "false"},
    "submitter": {"app.kubernetes.io/component": "submitter"},
    "prometheus": {"app.kubernetes.io/name": "prometheus"},
    "operator": {"app.kubernetes.io/name": "kuberay-operator"},
    "dns": {"k8s-app": "kube-dns"},
    "ingress": {"app.kubernetes.io/name": "ingress-nginx"},
    "stranger": {"app": "stranger"},
}
NAMESPACES = {
    "prometheus": "monitoring",
    "operator": "kuberay-operator",
    "dns": "kube-system",
    "ingress": "ingress-nginx",
    "stranger": "other",
}
OPENED = {"ingress-nginx": {"deblur/ingress": "true"}}
"""Labels that a user has put on a namespace."""


@pytest.mark.parametrize("name", NAMES)
def test_no_pod_is_root_or_can_become_it(name: str) -> None:
    for of, pod in pods(name).items():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"], of
        assert security["runAsUser"] > 0, of
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, of
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys(), of
        assert not any("hostPath" in volume for volume in volumes(pod).values()), of
    for of, container in containers(name).items():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, of


@pytest.mark.parametrize("name", NAMES)
def test_the_namespace_refuses_pods_with_more_rights(name: str) -> None:
    (namespace,) = kind(name, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [found for found in objects(name) if found["kind"] != "Namespace"]
    assert {found["metadata"]["namespace"] for found in others} == {namespace["metadata"]["name"]}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_autoscaler_has_a_token_of_the_kubernetes_api(name: str) -> None:
    for account in kind(name, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    accounts = {account["metadata"]["name"] for account in kind(name, "ServiceAccount")}
    for of, pod in pods(name).items():
        assert pod["spec"]["automountServiceAccountToken"] is False, of
        assert pod["spec"].get("serviceAccountName", "deblur") in accounts, of
    with_token = {
        of
        for of, container in containers(name).items()
        for mount in container["volumeMounts"]
        if mount["mountPath"].startswith("/var/run/secrets")
    }
    assert with_token == ({"autoscaler"} if name == "autoscaling" else set())


def test_the_autoscaler_may_look_at_pods_and_change_its_own_cluster() -> None:
    (role,) = kind("autoscaling", "Role")
    (binding,) = kind("autoscaling", "RoleBinding")
    rights = {
        (group, resource, verb, tuple(rule.get("resourceNames", ())))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    looks = {("", "pods", verb, ()) for verb in ("get", "list", "watch")}
    assert rights == looks | {("ray.io", "rayclusters", verb, ("deblur",)) for verb in ("get", "patch")}
    (subject,) = binding["subjects"]
    assert subject["name"] == pods("autoscaling")["head"]["spec"]["serviceAccountName"] == "deblur-head"
    assert pods("autoscaling")["gpu-workers"]["spec"]["serviceAccountName"] == "deblur"


@pytest.mark.parametrize("name", NAMES)
def test_jobs_are_taken_from_who_has_the_token(name: str) -> None:
    # With a secretName KubeRay waits for a Secret that nobody makes.
    assert cluster_spec(name)["authOptions"] == {"mode": "token"}
    assert cluster_spec(name)["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not kind(name, "Ingress", "Gateway", "HTTPRoute")
    assert {service["spec"].get("type", "ClusterIP") for service in kind(name, "Service")} <= {"ClusterIP"}


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_in_clear(name: str) -> None:
    assert not kind(name, "Secret")
    values = {
        entry["name"]: entry.get("value")
        for container in containers(name).values()
        for entry in container.get("env", [])
    }
    for config in kind(name, "ConfigMap"):
        values |= config["data"]
    secrets = {key: value for key, value in values.items() if re.search("(?i)secret|token|passw|access_key", key)}
    assert set(secrets.values()) <= {"none"}, secrets
    for of in ("head", cluster_spec(name)["workerGroupSpecs"][0]["groupName"]):
        config, secret = containers(name)[of]["envFrom"]
        assert config == {"configMapRef": {"name": "deblur-config"}}
        assert secret == {"secretRef": {"name": "deblur-s3", "optional": True}}


# ---- network policies, by the rules of Kubernetes: what no policy allows for a pod that one selects is denied


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Object, other: str) -> bool:
    if "ipBlock" in peer:
        return False
    namespace = NAMESPACES.get(other, "deblur")
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": namespace} | OPENED.get(namespace, {})
        here = selects(peer["namespaceSelector"], labels)
    else:
        here = namespace == "deblur"
    return here and selects(peer.get("podSelector", {}), LABELS[other])


def allowed(name: str, direction: str, pod: str, other: str, port: int) -> bool:
    """Whether `pod` of our namespace may take connections at a port from the other ('Ingress'), or open them to it."""
    peers = {"Ingress": "from", "Egress": "to"}[direction]
    chosen = [
        policy["spec"]
        for policy in kind(name, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], LABELS[pod]) and direction in policy["spec"]["policyTypes"]
    ]
    assert chosen, "without any policy everything would be allowed"
    return any(
        any(is_peer(peer, other) for peer in rule[peers])
        and ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
        for spec in chosen
        for rule in spec.get(direction.lower(), [])
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_rule_is_open(name: str) -> None:
    policies = kind(name, "NetworkPolicy")
    (deny,) = [policy["spec"] for policy in policies if policy["metadata"]["name"] == "deny-all"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            assert rule["from"], policy
            assert not any("ipBlock" in peer for peer in rule["from"]), policy
            for peer in rule["from"]:
                assert peer != {"namespaceSelector": {}}, policy
        for rule in policy["spec"].get("egress", []):
            assert rule["to"], policy
            for peer in rule["to"]:
                # The addresses of a store are not known, but never the node's own credentials.
                cidr = peer.get("ipBlock", {})
                assert cidr.get("cidr") != "0.0.0.0/0" or cidr["except"] == ["169.254.0.0/16"], policy
                assert cidr.get("cidr") != "0.0.0.0/0" or "ports" in rule, policy


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("direction", "pod", "other", "port", "expected"),
    [
        ("Ingress", "head", "worker", 6379, True),
        ("Ingress", "worker", "worker", 43210, True),
        ("Egress", "worker", "head", 6379, True),
        ("Egress", "worker", "dns", 53, True),
        ("Egress", "submitter", "dns", 53, True),
        ("Egress", "submitter", "head", 8265, True),
        ("Ingress", "head", "submitter", 8265, True),
        ("Ingress", "head", "operator", 8265, True),
        ("Ingress", "head", "prometheus", 9170, True),
        ("Ingress", "worker", "prometheus", 9171, True),
        ("Ingress", "head", "prometheus", 8265, False),
        ("Ingress", "head", "stranger", 8265, False),
        ("Ingress", "head", "stranger", 9170, False),
        ("Ingress", "head", "submitter", 6379, False),
        ("Ingress", "worker", "submitter", 8265, False),
        ("Ingress", "worker", "operator", 8265, False),
        ("Ingress", "submitter", "worker", 8265, False),
        ("Egress", "worker", "stranger", 8080, False),
        ("Egress", "submitter", "worker", 8265, False),
    ],
)
def test_who_reaches_whom(name: str, direction: str, pod: str, other: str, port: int, expected: bool) -> None:
    assert allowed(name, direction, pod, other, port) == expected


@pytest.mark.parametrize(
    ("direction", "pod", "other", "port", "expected"),
    [
        ("Ingress", "server", "ingress", 8000, True),
        ("Ingress", "server", "excluded head", 8000, True),  # Serve's controller and proxies, as every port
        ("Ingress", "server", "prometheus", 9171, True),
        ("Egress", "server", "excluded head", 6379, True),
        ("Ingress", "excluded head", "operator", 8265, True),  # which deploys the application
        ("Ingress", "server", "ingress", 8265, False),
        ("Ingress", "server", "ingress", 43210, False),
        ("Ingress", "excluded head", "ingress", 8000, False),
        ("Ingress", "excluded head", "ingress", 8265, False),
        ("Ingress", "worker", "ingress", 8000, False),  # of a cluster that trains
        ("Ingress", "server", "stranger", 8000, False),
        ("Ingress", "server", "prometheus", 8000, False),
        ("Ingress", "server", "submitter", 8000, False),
        ("Ingress", "server", "operator", 8000, False),
        ("Egress", "server", "stranger", 8000, False),
    ],
)
def test_who_may_send_pictures(direction: str, pod: str, other: str, port: int, expected: bool) -> None:
    assert allowed(SERVICE, direction, pod, other, port) == expected


def test_nobody_may_send_pictures_until_a_namespace_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OPENED, "ingress-nginx")
    assert not allowed(SERVICE, "Ingress", "server", "ingress", 8000)


def test_the_store_of_the_smoke_is_reached_from_its_namespace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELS, "store", {"app.kubernetes.io/component": "object-store"})
    for pod in ("head", "worker"):
        assert allowed("cpu-smoke", "Egress", pod, "store", 8333)
        assert allowed("cpu-smoke", "Ingress", "store", pod, 8333)
    assert not allowed("cpu-smoke", "Ingress", "store", "stranger", 8333)
    assert not allowed("cpu-smoke", "Egress", "store", "stranger", 8333)
