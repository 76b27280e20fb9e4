"""The queries of a dashboard as Prometheus takes them, with Grafana's variables filled in."""

import re
from collections.abc import Iterator
from typing import Any

# $name and ${name}; every run, every rank. A dashboard's own variables need no more than matching all.
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


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
