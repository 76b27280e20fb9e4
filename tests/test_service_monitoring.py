"""A real Prometheus scrapes a real service under load: dashboard queries, alerts, and counts of responses.

The metrics of Ray Serve may change with its version; here they are queried as they are.
"""

import collections
import io
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
import pytest
import yaml

from cluster.exporter import targets
from tests.datasets import picture
from tests.k8s.queries import DECLARED, RAY_SERVE, expressions
from tests.prometheus import MONITORING, Prometheus, wait_until, watching
from tests.service import metrics_address, running_service, write_model

pytestmark = [pytest.mark.soak, pytest.mark.timeout(400)]
AT_ONCE = 120  # the replica takes 16, the queue 64
RAY_EXPORTS_S = 11  # it does every 10 s
WINDOW_S = 60


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its address, and where Ray serves its metrics."""
    folder = tmp_path_factory.mktemp("service")
    # Not in `folder`: Ray's sockets lie there, and their paths may be no longer than 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as ray,
        running_service(write_model(folder / "model.safetensors"), folder / "log", RAY_TMPDIR=ray) as address,
    ):
        (port,) = Path(ray).glob("ray/session_2*/metrics_export_port_*")
        yield address, f"127.0.0.1:{port.read_text()}"


@pytest.fixture(scope="module")
def prometheus(service: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    address, ray = service
    folder = tmp_path_factory.mktemp("targets")
    ours = metrics_address(address).split("/")[2]
    (folder / "targets.json").write_bytes(targets([ours, ray], "deblur"))
    with watching(str(folder)) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def answers(service: tuple[str, str], prometheus: Prometheus) -> dict[str, int]:
    """The number of responses by status, when Prometheus has scraped it."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture(0, 300, 400)).save(file, "PNG")
    url, responses = f"{service[0]}/restore", collections.Counter[str]()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(2):  # the first value of a series is in no rate
            responses.update(pool.map(lambda _: _status(url, file.getvalue()), range(AT_ONCE)))
            responses.update([_status(url, b"no picture")])
            wait_until(lambda: all(prometheus.value(_asked(status)) == count for status, count in responses.items()))
            time.sleep(RAY_EXPORTS_S)
    return responses


def _status(url: str, body: bytes) -> str:
    request = urllib.request.Request(url, body, {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)


def _asked(status: str) -> str:
    return f'sum(ray_serve_num_http_requests_total{{route="/restore", status_code="{status}"}})'


def test_every_panel_has_data(prometheus: Prometheus, answers: dict[str, int]) -> None:
    dashboard = json.loads((MONITORING / "deblur-service.json").read_text())
    asked = expressions(dashboard, rate_interval=f"{WINDOW_S}s")
    assert len(asked) > 5
    values = {(title, query): [s["value"][1] for s in prometheus.ask(query)] for title, query in asked}
    assert [title for (title, _), found in values.items() if not found or "NaN" in found] == []


def test_proxies_and_replicas_count_the_responses(prometheus: Prometheus, answers: dict[str, int]) -> None:
    assert answers.keys() == {"200", "400", "503"}
    assert {status: prometheus.value(_asked(status)) for status in answers} == answers
    # The queue rejects: those do not reach the replica.
    replicas = prometheus.ask("sum by (status) (deblur_service_requests_total)")
    seen = {found["metric"]["status"]: float(found["value"][1]) for found in replicas}
    assert seen == {"200": answers["200"], "400": answers["400"]}


def test_labels_are_as_declared(prometheus: Prometheus, answers: dict[str, int]) -> None:
    for name, labels in RAY_SERVE.items():
        series = prometheus.ask(f'{name}{{application!=""}}')  # requests to unknown paths have none
        assert series, name
        assert all(labels <= found["metric"].keys() for found in series), name
    for found in prometheus.ask('{__name__=~"deblur_service_.*"}'):
        labels = found["metric"].keys() - {"__name__", "instance", "job"}
        assert labels == DECLARED[found["metric"]["__name__"]] - {"namespace"}  # there are none on this machine


def test_there_is_one_replica_as_targeted(prometheus: Prometheus, answers: dict[str, int]) -> None:
    restorer = '{deployment="Restorer"}'
    assert prometheus.value(f"sum(ray_serve_deployment_replica_healthy{restorer})") == 1
    assert prometheus.value(f"sum(ray_serve_autoscaling_target_replicas{restorer})") == 1
    assert prometheus.value("count(deblur_service_running)") == 1


def test_only_the_alert_about_rejections_fires(prometheus: Prometheus, answers: dict[str, int]) -> None:
    (group,) = [
        group
        for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
        if group["name"] == "deblur-service"
    ]
    # Evaluated now, without their `for`.
    assert {rule["alert"] for rule in group["rules"] if prometheus.ask(rule["expr"])} == {"DeblurServiceRefusing"}
