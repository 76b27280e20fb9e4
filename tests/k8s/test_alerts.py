"""The alerts: promtool's own tests of them, their entries in the runbook, and the metrics that they ask for."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.k8s.queries import DECLARED, metrics

ROOT = Path(__file__).parents[2]
CASES_FILE = Path(__file__).with_name("alerts_test.yaml")
CRD = Path(__file__).parent / "crds/monitoring.coreos.com_prometheusrules.yaml"
OBJECT = yaml.safe_load((ROOT / "k8s/monitoring/alerts.yaml").read_text())
CASES = yaml.safe_load(CASES_FILE.read_text())
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in OBJECT["spec"]["groups"] for rule in group["rules"]
}

_TEXT = {"type": "string", "minLength": 1}
_DURATION = {"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 2}


def _fields(**fields: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "required": list(fields), "additionalProperties": False, "properties": fields}


# The part of the CRD that we use, and what each of our alerts must have.
SCHEMA = _fields(
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PrometheusRule"},
    metadata=_fields(
        name={"const": "deblur"},
        namespace={"const": "deblur"},
        labels={"type": "object", "additionalProperties": _TEXT},
    ),
    spec=_fields(
        groups={
            "type": "array",
            "minItems": 1,
            "items": _fields(
                name=_TEXT,
                rules={
                    "type": "array",
                    "minItems": 1,
                    "items": _fields(
                        alert={"type": "string", "pattern": "^Deblur([A-Z][a-z]+)+$"},
                        expr=_TEXT,
                        **{"for": _DURATION},
                        labels=_fields(severity={"enum": ["critical", "warning"]}),
                        annotations=_fields(summary=_TEXT, description=_TEXT, runbook_url=_TEXT),
                    ),
                },
            ),
        }
    ),
)


def promtool(*arguments: str | Path) -> None:
    """Runs promtool; fails with what it prints."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("promtool is missing: install the Debian package `prometheus` (apt-get install prometheus)")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def minutes(duration: str) -> int:
    """Of '75m'."""
    assert re.fullmatch(r"\d+m", duration), f"{duration}: times of cases are whole minutes"
    return int(duration[:-1])


def outcomes(alert: str) -> list[tuple[set[int], set[int]]]:
    """The minutes at which an alert is silent and those at which it fires, of each test that names it."""
    found = []
    for test in CASES["tests"]:
        cases = [case for case in test.get("alert_rule_test", ()) if case["alertname"] == alert]
        fires = {minutes(case["eval_time"]) for case in cases if case["exp_alerts"]}
        found.append(({minutes(case["eval_time"]) for case in cases} - fires, fires))
    return found


def test_the_object_is_a_prometheus_rule() -> None:
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    # Not `jsonschema.validate`: a pattern of the CRD, for a field that we do not use, is one of Go's.
    jsonschema.Draft202012Validator(version["schema"]["openAPIV3Schema"]).validate(OBJECT)


def test_every_alert_has_all_that_ours_have_and_no_field_is_misspelt() -> None:
    jsonschema.validate(OBJECT, SCHEMA)


def test_no_name_is_used_twice() -> None:
    names = [rule["alert"] for group in OBJECT["spec"]["groups"] for rule in group["rules"]]
    assert len(names) == len(set(names))


@pytest.mark.integration
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(OBJECT["spec"]))
    promtool("check", "rules", rules)


@pytest.mark.integration
def test_alerts_fire_when_they_should_and_at_no_other_time(tmp_path: Path) -> None:
    # promtool compares all annotations; the other two are plain text, and would be repeated in every case.
    groups = [
        {**group, "rules": [{**r, "annotations": {"summary": r["annotations"]["summary"]}} for r in group["rules"]]}
        for group in OBJECT["spec"]["groups"]
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    promtool("test", "rules", shutil.copy(CASES_FILE, tmp_path))


@pytest.mark.parametrize("alert", ALERTS)
def test_there_is_a_case_of_silence_a_minute_before_the_alert(alert: str) -> None:
    assert any(minute - 1 in silent for silent, fires in outcomes(alert) for minute in fires)


def test_cases_are_of_alerts_that_exist() -> None:
    named = {case["alertname"] for test in CASES["tests"] for case in test.get("alert_rule_test", ())}
    assert named <= set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_summaries_name_the_run_or_the_namespace_and_the_value(alert: str) -> None:
    annotations = ALERTS[alert]["annotations"]
    name = "namespace" if alert.startswith("DeblurService") else "run"
    assert f"{{{{ $labels.{name} }}}}" in annotations["summary"]
    assert "{{ $value" in annotations["summary"]
    assert "{{" not in annotations["description"] + annotations["runbook_url"]  # the cases do not look at them


def test_each_alert_has_an_entry_in_the_runbook_and_each_entry_an_alert() -> None:
    assert re.findall(r"^## (Deblur\w+)$", RUNBOOK, re.MULTILINE) == list(ALERTS)
    for alert, rule in ALERTS.items():
        # The anchor that GitHub and others make of a heading.
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


@pytest.mark.parametrize("alert", ALERTS)
def test_entries_say_all_that_they_should(alert: str) -> None:
    entry = RUNBOOK.partition(f"## {alert}\n")[2].partition("\n## ")[0]
    at = [entry.find(part) for part in ("**Means.**", "**Look at.**", "**Causes.**", "**Fix.**")]
    assert -1 not in at
    assert at == sorted(at)


@pytest.mark.parametrize("alert", ALERTS)
def test_metrics_of_an_alert_are_declared(alert: str) -> None:
    asked = metrics(ALERTS[alert]["expr"])
    assert asked
    assert asked <= DECLARED.keys()


def test_series_of_cases_are_as_they_are_exported() -> None:
    for test in CASES["tests"]:
        for series in test["input_series"]:
            name, _, rest = series["series"].partition("{")
            assert set(re.findall(r"(\w+)=", rest)) == DECLARED[name] | {"instance"}, series
        named = [series["series"] for series in test["input_series"]]
        assert len(named) == len(set(named)), test["name"]  # promtool would mix their samples
