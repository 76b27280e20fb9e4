"""The Prometheus endpoint of one process: the metrics of a declared table, served over HTTP.

The process sets values when it knows them; what is kept elsewhere is read at each scrape. There is one endpoint per
process and no multiprocess directory, in which the files of processes that died would stay.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.errors import InputError

PORTS = 16  # an endpoint takes one of these many, starting at its own
OWN_PORT_S = 5.0  # how long a process waits for its own port, which its predecessor may still hold
_log = logging.getLogger(__name__)

prometheus_client.disable_created_metrics()  # a `_created` series beside each counter, which no panel needs


@dataclass(frozen=True)
class MetricSpec:
    """One metric: its name with its unit, and its labels beside those that every metric has."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


class Metrics(Collector):
    """The metrics of a table; every series has the `common` labels. Any thread may set them.

    `pull` is called at each scrape and returns the values, by name, of metrics without labels that are kept elsewhere.
    A metric is either pulled or set, never both.
    """

    def __init__(self, table: Sequence[MetricSpec], common: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self.pull: Callable[[], Mapping[str, float]] = dict
        self._table = {spec.name: spec for spec in table}
        self._common = common
        self._metrics: dict[str, Counter | Gauge] = {}
        self.registry.register(self)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge. `labels` are the values of those that the table names, in its order."""
        gauge = self._child(name, labels)
        assert isinstance(gauge, Gauge), f"{name} is a counter"
        gauge.set(value)

    def add(self, name: str, amount: float, *labels: str) -> None:
        """Adds to a counter or a gauge."""
        self._child(name, labels).inc(amount)

    def _child(self, name: str, labels: tuple[str, ...]) -> Counter | Gauge:
        if name not in self._metrics:
            spec = self._table[name]
            kind = Counter if spec.kind == "counter" else Gauge
            self._metrics[name] = kind(name, spec.help, [*self._common, *spec.labels], registry=self.registry)
        return self._metrics[name].labels(*self._common.values(), *labels)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would call `collect` to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The pulled metrics."""
        for name, value in self.pull().items():
            spec = self._table[name]
            family = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
            pulled = family(name, spec.help, labels=list(self._common))
            pulled.add_metric(list(self._common.values()), value)
            yield pulled


def check_port(first_port: int) -> None:
    """Raises InputError where a `--metrics-port` leaves too few ports for the range that starts there."""
    last = 65536 - PORTS
    if first_port and not 1024 <= first_port <= last:
        raise InputError(f"--metrics-port is {first_port}; expected 1024 to {last}, or 0 for no metrics")


@contextlib.contextmanager
def served(metrics: Metrics, host: str, first_port: int, own: int = 0, own_port_s: float = OWN_PORT_S) -> Iterator[str]:
    """Serves metrics over HTTP while the context is open; yields the address, "host:port".

    The port is `first_port + own`, or another of the `PORTS` from `first_port` on if that stays taken. Yields "" if no
    port can be opened, with a warning (a run without metrics is better than no run), and if `first_port` is 0.
    """
    addr = "::" if ":" in host else "0.0.0.0"  # noqa: S104  # Prometheus scrapes from elsewhere
    found = _first_free(metrics.registry, addr, first_port, own % PORTS, own_port_s) if first_port else None
    if found is None:
        yield ""
        return
    port, server = found
    try:
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    finally:
        server.shutdown()
        server.server_close()


def targets(addresses: Iterable[str], job: str) -> bytes:
    """The scrape targets of a job as a file for Prometheus' file_sd_configs."""
    return json.dumps([{"targets": list(addresses), "labels": {"job": job}}], indent=2).encode()


def _first_free(
    registry: CollectorRegistry, addr: str, first_port: int, own: int, own_port_s: float
) -> tuple[int, WSGIServer] | None:
    """The port that could be opened, and its server."""
    until, mine = time.monotonic() + own_port_s, first_port + own
    others = [port for port in range(first_port, first_port + PORTS) if port != mine]
    while (server := _listen(registry, addr, mine)) is None and time.monotonic() < until:
        time.sleep(0.2)
    if server:
        return mine, server
    for port in others:
        if server := _listen(registry, addr, port):
            _log.warning("metrics port %d is in use; serving metrics at %d", mine, port)
            return port, server
    last = first_port + PORTS - 1
    _log.warning("no metrics are served: could not open any port from %d to %d", first_port, last)
    return None


def _listen(registry: CollectorRegistry, addr: str, port: int) -> WSGIServer | None:
    try:
        return start_http_server(port, addr, registry)[0]
    except Exception as error:  # training does not depend on metrics
        _log.debug("metrics port %d: %s", port, error)
        return None
