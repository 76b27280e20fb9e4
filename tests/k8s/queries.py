"""The queries of a dashboard as Prometheus takes them, Grafana's variables filled in, and what they may ask for."""

import re
from collections.abc import Iterator
from typing import Any

from deblur.app.metrics import SERVICE
from deblur.training.metrics import TABLE

# What Ray Serve exports itself and we ask for; tests/test_service_monitoring.py compares it with a service that runs.
_REQUEST = {"application", "method", "route", "status_code"}
RAY_SERVE = {
    "ray_serve_num_http_requests_total": _REQUEST,
    "ray_serve_http_request_latency_ms_bucket": _REQUEST | {"le"},
    "ray_serve_deployment_queued_queries": {"application", "deployment", "handle", "actor_id"},
    "ray_serve_deployment_replica_healthy": {"application", "deployment", "replica"},
    "ray_serve_autoscaling_target_replicas": {"application", "deployment"},
}
# Each metric's labels. That of the namespace comes from the operator of Prometheus, for all that a pod serves.
DECLARED = (
    {metric.name: {"run", "rank", *metric.labels} for metric in TABLE}
    | {metric.name: {"namespace", "replica", *metric.labels} for metric in SERVICE}
    | {name: {"namespace", *labels} for name, labels in RAY_SERVE.items()}
)
# $name and ${name}; every run, every rank. A dashboard's own variables need no more than matching all.
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


def metrics(text: str) -> set[str]:
    """The names of metrics in expressions, ours and those of Ray Serve."""
    return set(re.findall(r"\b(?:deblur|ray)_\w+", text))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All but rows, those of folded rows included."""
    return [panel for panel in _with_folded(dashboard) if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any], rate_interval: str = "1m") -> list[tuple[str, str]]:
    """The title of the panel and the expression, for each query of each panel."""
    return [
        (panel["title"], filled_in(target["expr"], rate_interval))
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def annotations(dashboard: dict[str, Any], rate_interval: str = "1m") -> list[tuple[str, str]]:
    """Likewise the name of each annotation and its expression."""
    return [(found["name"], filled_in(found["expr"], rate_interval)) for found in dashboard["annotations"]["list"]]


def filled_in(text: str, rate_interval: str = "1m") -> str:
    """The text with a value for every variable of Grafana's."""
    durations = {"__rate_interval": rate_interval, "__interval": "15s", "__range": "1h"}
    return _VARIABLE.sub(lambda name: durations.get(name[1], ".*"), text)


def _with_folded(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])
