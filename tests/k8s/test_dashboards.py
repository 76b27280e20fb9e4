"""The Grafana dashboards: current, complete, of declared metrics alone, and of queries that Prometheus understands."""

import importlib.util
import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.exporter import PORTS
from deblur.training.settings import TrainSettings
from tests.k8s.queries import DECLARED, annotations, expressions, filled_in, metrics, panels
from tests.k8s.schemas import schema_of

MONITORING = Path(__file__).parents[2] / "k8s" / "monitoring"
# What is chosen above the panels of each, and told apart in them.
CHOSEN = {"deblur-training": "run", "deblur-search": "run", "deblur-service": "namespace"}
NAMES = tuple(CHOSEN)


def _dashboard(name: str) -> dict[str, Any]:
    return json.loads((MONITORING / f"{name}.json").read_text())


def _manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((MONITORING / name).read_text())


def _all_queries() -> list[tuple[str, str]]:
    return [query for name in NAMES for query in expressions(_dashboard(name)) + annotations(_dashboard(name))]


each_dashboard = pytest.mark.parametrize("name", NAMES)


def test_the_files_are_what_the_generator_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MONITORING)
    spec = importlib.util.spec_from_file_location("deblur_dashboards", MONITORING / "dashboards.py")
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)

    written = generator.files()

    assert set(written) == {path.name for path in MONITORING.glob("*.json")}
    for name, content in written.items():
        stale = (MONITORING / name).read_bytes() != content.encode()
        assert not stale, f"{name} is stale: run `python k8s/monitoring/dashboards.py`"


@each_dashboard
def test_panels_say_what_they_show(name: str) -> None:
    for panel in panels(_dashboard(name)):
        assert panel["title"]
        assert "Good: " in panel["description"], f"{panel['title']}: what does good look like?"
        assert panel["fieldConfig"]["defaults"]["unit"], f"{panel['title']} has no unit"
        assert panel["targets"], f"{panel['title']} has no query"


@each_dashboard
def test_a_legend_tells_the_series_of_a_query_apart(name: str) -> None:
    for panel in panels(_dashboard(name)):
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends)
        for target, legend in zip(panel["targets"], legends, strict=True):
            assert legend, f"{panel['title']} has a query without a legend"
            grouped = set(re.search(r"\bby \(([^)]*)\)", target["expr"])[1].split(", "))  # type: ignore[index]
            if target.get("format") == "table":
                assert grouped == {"run"}, f"{panel['title']}: a table has one line per run"
            else:
                grouped -= {"le"} if target["expr"].startswith("histogram_quantile(") else set()  # takes it away
                assert set(re.findall(r"{{(\w+)}}", legend)) == grouped, f"{panel['title']}: {legend}"


@each_dashboard
def test_columns_of_tables_have_names_and_units(name: str) -> None:
    for panel in panels(_dashboard(name)):
        if panel["type"] not in ("table", "xychart"):
            continue
        renamed = {k: v for t in panel["transformations"] for k, v in t["options"].get("renameByName", {}).items()}
        assert renamed == {f"Value #{target['refId']}": target["legendFormat"] for target in panel["targets"]}
        units = {
            o["matcher"]["options"] for o in panel["fieldConfig"]["overrides"] if o["properties"][0]["id"] == "unit"
        }
        assert units == set(renamed.values())


def test_dashboards_know_declared_metrics_alone() -> None:
    queried = {metric for _, expr in _all_queries() for metric in metrics(expr)}
    variables = [v for name in NAMES for v in _dashboard(name)["templating"]["list"] if v["type"] == "query"]
    listed = {metric for variable in variables for metric in metrics(variable["query"])}

    assert listed
    assert queried | listed <= DECLARED.keys()


def test_queries_ask_for_labels_that_the_metric_has() -> None:
    selectors = [found for _, expr in _all_queries() for found in re.findall(r"((?:deblur|ray)_\w+){([^}]*)}", expr)]

    assert selectors
    for metric, selector in selectors:
        assert set(re.findall(r"(\w+)=", selector)) <= DECLARED[metric], f"{metric}{{{selector}}}"


def test_every_declared_metric_is_shown_or_decides_an_alert() -> None:
    shown = {metric for name in NAMES for _, expr in expressions(_dashboard(name)) for metric in metrics(expr)}
    rules = [rule for group in _manifest("alerts.yaml")["spec"]["groups"] for rule in group["rules"]]
    alerted = {metric for rule in rules for metric in metrics(rule["expr"])}

    assert DECLARED.keys() <= shown | alerted
    assert DECLARED.keys() - shown == {"deblur_trial"}


@each_dashboard
def test_runs_or_namespaces_are_chosen_and_rates_follow_the_scrapes(name: str) -> None:
    for panel in panels(_dashboard(name)):
        for expr in (target["expr"] for target in panel["targets"]):
            chosen = re.findall(rf'\b{CHOSEN[name]}=~"\${CHOSEN[name]}"', expr)
            assert len(chosen) == len(re.findall(r"\b(?:deblur|ray)_", expr)), expr
            rates = re.findall(r"\b(?:rate|increase)\([^\[]*\[([^\]]*)\]", expr)
            assert len(rates) == len(re.findall(r"\b(?:rate|increase)\(", expr))
            assert set(rates) <= {"$__rate_interval"}, expr


@pytest.mark.integration
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: apt-get install prometheus"
    found = _all_queries()
    # A bare expression can only be asked of a server; as a recording rule it is parsed.
    rules = [{"record": f"query:{i}", "expr": expr} for i, (_, expr) in enumerate(found)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))

    checked = subprocess.run([promtool, "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stderr
    assert f"{len(found)} rules found" in checked.stdout


def test_variables_are_filled_in() -> None:
    assert filled_in('x{run=~"$run", rank=~"${rank}"}[$__rate_interval]', "5s") == 'x{run=~".*", rank=~".*"}[5s]'
    assert not [expr for _, expr in _all_queries() if "$" in expr]


def test_dashboards_and_panels_are_told_apart() -> None:
    dashboards = [_dashboard(name) for name in NAMES]

    assert [dashboard["uid"] for dashboard in dashboards] == list(NAMES)
    for dashboard in dashboards:
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)


@each_dashboard
def test_panels_lie_side_by_side(name: str) -> None:
    found = _dashboard(name)["panels"]
    places = [(panel["title"], panel["gridPos"]) for panel in found]

    assert all(place["x"] + place["w"] <= 24 for _, place in places)
    for (title, a), (other, b) in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], f"{title} lies on {other}"


def test_the_kustomization_hands_every_dashboard_to_grafana() -> None:
    kustomization = _manifest("kustomization.yaml")
    generators = kustomization["configMapGenerator"]
    options = kustomization["generatorOptions"]

    assert [file for generator in generators for file in generator["files"]] == [f"{name}.json" for name in NAMES]
    assert all((MONITORING / name).is_file() for name in kustomization["resources"])
    assert options["labels"] == {"grafana_dashboard": "1"}
    assert options["annotations"] == {"grafana_folder": "Deblur"}
    assert options["disableNameSuffixHash"]


def test_the_pod_monitor_is_what_its_definition_permits() -> None:
    jsonschema.validate(_manifest("podmonitor.yaml"), schema_of("monitoring.coreos.com_podmonitors"))


def test_the_pod_monitor_takes_our_ports_alone() -> None:
    ray, ours = _manifest("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    keep = ours["relabelings"][0]

    assert ray["port"] == "metrics"
    assert keep["action"] == "keep"
    assert keep["sourceLabels"] == ["__meta_kubernetes_pod_container_port_number"]
    taken = [port for port in range(1, 65536) if re.fullmatch(keep["regex"], str(port))]
    assert taken == list(range(TrainSettings.metrics_port, TrainSettings.metrics_port + PORTS))
