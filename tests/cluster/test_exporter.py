"""The endpoint of a process, read by an HTTP client and Prometheus' own parser."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.exporter import PORTS, Metrics, MetricSpec, served, targets

TABLE = (
    MetricSpec("work_seconds_total", "counter", "Time by part.", ("part",)),
    MetricSpec("reached", "gauge", "How far."),
    MetricSpec("read_bytes_total", "counter", "Bytes."),
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(TABLE, {"run": 'a "run"\\', "rank": "0"})


@pytest.fixture
def first_port() -> Iterator[int]:
    """The first of a range of ports that were free a moment ago."""
    for first in range(21000, 30000, PORTS):
        try:
            for port in range(first, first + PORTS):
                with socket.create_server(("", port)):
                    pass
        except OSError:
            continue
        yield first
        return


def scrape(address: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and the labels' values in the order of their names."""
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_finds_what_was_set_with_the_labels_of_all(metrics: Metrics, first_port: int) -> None:
    with served(metrics, "127.0.0.1", first_port) as address:
        assert scrape(address) == {}, "nothing is known yet"
        metrics.add("work_seconds_total", 1.5, "data")
        metrics.add("work_seconds_total", 2.0, "data")
        metrics.add("work_seconds_total", 4.0, "rest")
        metrics.set("reached", 7)
        metrics.set("reached", 8)
        run = 'a "run"\\'
        assert scrape(address) == {
            ("work_seconds_total", ("data", "0", run)): 3.5,
            ("work_seconds_total", ("rest", "0", run)): 4.0,
            ("reached", ("0", run)): 8.0,
        }


def test_pulled_metrics_are_read_at_each_scrape(metrics: Metrics, first_port: int) -> None:
    read = [10]
    metrics.pull = lambda: {"read_bytes_total": read[0]}
    with served(metrics, "127.0.0.1", first_port) as address:
        assert list(scrape(address).values()) == [10]
        read[0] = 30
        assert list(scrape(address).values()) == [30]


def test_types_and_help_are_exposed(metrics: Metrics, first_port: int) -> None:
    for metric in TABLE:
        metrics.add(metric.name, 1, *("x" for _ in metric.labels))
    with served(metrics, "127.0.0.1", first_port) as address:
        text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
    found = {family.name: (family.type, family.documentation) for family in text_string_to_metric_families(text)}
    assert found == {
        "work_seconds": ("counter", "Time by part."),
        "reached": ("gauge", "How far."),
        "read_bytes": ("counter", "Bytes."),
    }


def test_a_metric_that_is_not_in_the_table_is_refused(metrics: Metrics) -> None:
    with pytest.raises(KeyError, match="speed"):
        metrics.set("speed", 1)


def test_the_port_is_released(metrics: Metrics, first_port: int) -> None:
    for _ in range(2):
        with served(metrics, "127.0.0.1", first_port, 3) as address:
            assert address == f"127.0.0.1:{first_port + 3}"


HOLD = "import socket, sys, time; s = socket.create_server(('', int(sys.argv[1]))); print(flush=True); time.sleep(60)"


def test_a_process_waits_for_its_port_while_its_predecessor_ends(metrics: Metrics, first_port: int) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(first_port)], stdout=subprocess.PIPE) as before:
        before.stdout.readline()
        threading.Timer(1.0, before.kill).start()
        with served(metrics, "127.0.0.1", first_port, own_port_s=30) as address:
            assert address == f"127.0.0.1:{first_port}"


def test_another_port_of_the_range_is_taken_when_it_does_not_come_free(metrics: Metrics, first_port: int) -> None:
    with (
        served(metrics, "127.0.0.1", first_port, 1) as first,
        served(metrics, "127.0.0.1", first_port, 1, own_port_s=0) as second,
    ):
        assert first == f"127.0.0.1:{first_port + 1}"
        assert second == f"127.0.0.1:{first_port}"


def test_without_a_free_port_nothing_is_served_and_the_log_says_so(
    metrics: Metrics, first_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    taken = [socket.create_server(("", port)) for port in range(first_port, first_port + PORTS)]
    try:
        with served(metrics, "127.0.0.1", first_port, own_port_s=0) as address:
            assert address == ""
    finally:
        for held in taken:
            held.close()
    assert f"{first_port} to {first_port + PORTS - 1}" in caplog.text


def test_port_0_serves_nothing_and_says_nothing(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    with served(metrics, "127.0.0.1", 0, 1) as address:
        assert address == ""
    assert caplog.text == ""


def test_scrapes_while_numbers_change_are_whole(metrics: Metrics, first_port: int) -> None:
    done = threading.Event()

    def work() -> None:
        part = 0
        while not done.is_set():
            metrics.add("work_seconds_total", 1, f"part {part % 500}")
            part += 1

    thread = threading.Thread(target=work)
    thread.start()
    with served(metrics, "127.0.0.1", first_port) as address:
        until, before = time.monotonic() + 1, 0.0
        while time.monotonic() < until:
            now = sum(scrape(address).values())
            assert now >= before, "counters do not go back"
            before = now
        done.set()
        thread.join()
    assert before > 0


def test_targets_are_what_prometheus_reads() -> None:
    assert json.loads(targets(["10.0.0.1:9170", "10.0.0.2:9171"], "work")) == [
        {"targets": ["10.0.0.1:9170", "10.0.0.2:9171"], "labels": {"job": "work"}}
    ]


def test_an_address_of_ipv6_is_served_and_has_brackets(metrics: Metrics, first_port: int) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    metrics.set("reached", 1)
    with served(metrics, "::1", first_port) as address:
        assert address == f"[::1]:{first_port}"
        assert list(scrape(address).values()) == [1]


def test_a_port_that_cannot_be_is_not_served(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    with served(metrics, "127.0.0.1", 70_000, own_port_s=0) as address:
        assert address == ""
    assert "no metrics are served" in caplog.text
