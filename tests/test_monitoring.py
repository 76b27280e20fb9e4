"""A real Prometheus scrapes a real run: every dashboard query, every alert, and the loss of a rank.

The run has two ranks on two nodes, in network namespaces if this machine permits. Prometheus' values are compared with
what the ranks recorded.
"""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from benchmarks.recorded import read_record
from benchmarks.recovery import DRAIN_S, Bench
from cluster.storage import join, open_store
from deblur.training.metrics import TABLE
from tests.clusters import two_nodes
from tests.datasets import write_dataset
from tests.k8s.queries import annotations, expressions
from tests.prometheus import MONITORING, Prometheus, wait_until, watching

WINDOW_S = 20
EMPTY_WITHOUT_GPU = "deblur_device_memory_bytes"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("monitoring")
    with two_nodes(DRAIN_S) as cluster:
        # Longer than the tests take; stopped with the cluster.
        yield Bench(cluster, write_dataset(open_store(folder / "data"), train=43), folder, updates=100_000)


@pytest.fixture(scope="module")
def prometheus(bench: Bench) -> Iterator[Prometheus]:
    """Started before the run."""
    with watching(join(bench.folder, "seen")) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def job(bench: Bench, prometheus: Prometheus) -> str:
    """The run, once every metric has data."""
    job = bench.submit("seen", "--validate-images", "800", "--checkpoint-s", "8")
    bench.wait_for_update("seen", job, 20)
    wait_until(lambda: prometheus.value("deblur_checkpoints_total") and prometheus.ask("deblur_validation_ssim"))
    time.sleep(WINDOW_S)
    return job


# tests/test_service_monitoring.py covers deblur-service.
@pytest.mark.parametrize("name", ["deblur-training", "deblur-search"])
def test_every_panel_has_data(prometheus: Prometheus, job: str, name: str) -> None:
    dashboard = json.loads((MONITORING / f"{name}.json").read_text())
    asked = expressions(dashboard, rate_interval=f"{WINDOW_S}s")
    assert len(asked) > 5
    empty = {title for title, expression in asked if not prometheus.ask(expression)}
    without_gpu = {title for title, expression in asked if EMPTY_WITHOUT_GPU in expression}
    assert empty == without_gpu


def test_every_alert_is_valid_and_none_fires_on_a_healthy_run(prometheus: Prometheus, job: str) -> None:
    rules = [rule for group in rule_groups() for rule in group["rules"]]
    for rule in rules:
        prometheus.ask(rule["expr"])
    loaded = json.load(urllib.request.urlopen(f"{prometheus.url}/api/v1/rules"))["data"]["groups"]
    states = {rule["name"]: (rule["health"], rule["state"]) for group in loaded for rule in group["rules"]}
    assert states.keys() == {rule["alert"] for rule in rules}
    assert {name for name, (health, _) in states.items() if health != "ok"} == set()
    # "pending" would become "firing"; this run is throttled by waiting for data.
    assert {name for name, (_, state) in states.items() if state != "inactive"} <= {"DeblurDataStarved"}


def rule_groups() -> list[dict[str, Any]]:
    return yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]


def test_every_metric_is_exported_and_passes_promtool_lint(prometheus: Prometheus, bench: Bench, job: str) -> None:
    found = {series["metric"]["__name__"] for series in prometheus.ask('{__name__=~"deblur_.*"}')}
    assert found == {metric.name for metric in TABLE} - {EMPTY_WITHOUT_GPU}
    for address in addresses(bench):
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read()
        lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (lint.returncode, lint.stdout + lint.stderr) == (0, b"")


def addresses(bench: Bench) -> list[str]:
    return json.loads(bench.run("seen").store.get("targets.json"))[0]["targets"]


def test_the_driver_and_both_ranks_are_scraped(prometheus: Prometheus, bench: Bench, job: str) -> None:
    found = {(series["metric"]["instance"], series["value"][1]) for series in prometheus.ask('up{job="deblur"}')}
    assert found == {(address, "1") for address in addresses(bench)}
    ranks = {series["metric"]["rank"] for series in prometheus.ask('{__name__=~"deblur_.*", run="seen"}')}
    assert ranks == {"driver", "0", "1"}


def test_images_per_second_match_the_ranks_records(prometheus: Prometheus, bench: Bench, job: str) -> None:
    at = time.time()
    measured = prometheus.value(f"sum(rate(deblur_images_total[{WINDOW_S}s]))", at)
    lines = read_record(bench.record("seen"))[-1].lines
    consumed = sum(len(line["positions"]) for line in lines if at - WINDOW_S < line["time"] <= at)
    assert measured == pytest.approx(consumed / WINDOW_S, rel=0.1)


def test_parts_add_up_to_a_rank_s_time(prometheus: Prometheus, job: str) -> None:
    shares = prometheus.ask(f"sum by (rank) (rate(deblur_update_seconds_total[{WINDOW_S}s]))")
    assert len(shares) == 2
    # The rest belongs to no part: counting, and transfers to the device.
    assert all(0.85 < float(share["value"][1]) < 1.1 for share in shares), shares


def test_lost_rank_increments_restarts_and_updates_lost_without_negative_rates(
    prometheus: Prometheus, bench: Bench, job: str
) -> None:
    run, before = bench.run("seen"), time.time()
    assert prometheus.value("max(deblur_restarts_total)") == prometheus.value("max(deblur_updates_lost_total)") == 0
    # Long enough after a checkpoint that updates are lost.
    wait_until(lambda: json.loads(run.store.get("history.json"))["images_seen"] > run.images_seen() + 40)
    (start,) = read_record(bench.record("seen"))
    os.kill(start.pids[1], signal.SIGKILL)
    wait_until(lambda: prometheus.value("max(deblur_restarts_total)") == 1)
    wait_until(lambda: len(read_record(bench.record("seen"))) == 2)
    first, second = read_record(bench.record("seen"))
    lost = (first.end - second.begin) // bench.plan.batch_size + 1
    reported = prometheus.value("max(deblur_updates_lost_total)")
    assert reported is not None
    # Ranks sync every three seconds, at most 120 updates; updates after the last sync are unknown.
    assert lost - 120 < reported <= lost
    assert reported > 0

    wait_until(lambda: prometheus.value("sum(rate(deblur_images_total[10s]))"))
    marks = dict(annotations(json.loads((MONITORING / "deblur-training.json").read_text()), rate_interval="90s"))
    wait_until(lambda: prometheus.ask(marks["Restarts"]), 30)  # evaluated every 15 s
    assert prometheus.ask(marks["Checkpoints"])
    span = f"{time.time() - before + 10:.0f}s"
    for metric in ("restarts", "updates_lost", "preemption_notices"):
        assert prometheus.value(f"resets(max(deblur_{metric}_total)[{span}:1s])") == 0, (
            f"{metric} counts over the run's lifetime"
        )
    # A new process counts from 0, which rate() handles: it neither goes negative nor spikes.
    usual = prometheus.value(f"sum(rate(deblur_images_total[{WINDOW_S}s]))", before)
    rates = [
        float(series["value"][1])
        for bound in ("min", "max")
        for series in prometheus.ask(f"{bound}_over_time(sum by (rank) (rate(deblur_images_total[10s]))[{span}:1s])")
    ]
    assert usual
    assert len(rates) == 4
    assert all(0 <= rate < 2 * usual for rate in rates), (usual, rates)
    assert prometheus.value("max(deblur_ranks_present)") == 2
    up = prometheus.value(f"changes(max(deblur_restarts_total)[{span}:1s])")
    assert up == 1, "one restart is one step, whichever process reports it"
