"""The Prometheus endpoint of one process: numbers of a declared table, served over HTTP.

The numbers are plain values that the process sets when it knows them; a scrape reads them and disturbs nobody. There is
one endpoint per process and no directory shared by processes, which would keep the files of the dead.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.errors import InputError

PORTS = 16  # an endpoint takes one of so many, from its own on
OWN_PORT_S = 5.0  # how long a process waits for its own port, which the one before it may still hold
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Declared:
    """One metric: its name with its unit, and what tells its series apart beside the labels that all have."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


class Numbers(Collector):
    """Values of declared metrics; every series has the `common` labels. Any thread may set them.

    `live` metrics are asked for at each scrape: a function that returns the value of each name.
    """

    def __init__(self, table: Sequence[Declared], common: dict[str, str]) -> None:
        self._table = {metric.name: metric for metric in table}
        self._common = common
        self._values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in self._table}
        self.live: Callable[[], dict[str, float]] = dict

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a value. `labels` are values of those that the table names, in its order."""
        self._values[name][labels] = value

    def add(self, name: str, amount: float, *labels: str) -> None:
        """Adds to a value; the first time, to 0. One thread per series."""
        series = self._values[name]
        series[labels] = series.get(labels, 0.0) + amount

    def get(self, name: str, *labels: str) -> float:
        """A value that was set; 0 before."""
        return self._values[name].get(labels, 0.0)

    def describe(self) -> Iterable[Metric]:
        """The families without values, for the registry's check of names."""
        return [self._family(metric) for metric in self._table.values()]

    def collect(self) -> Iterator[Metric]:
        """The families that have values."""
        for name, value in self.live().items():
            self.set(name, value)
        for name, series in self._values.items():
            if series:
                family = self._family(self._table[name])
                for labels, value in list(series.items()):
                    family.add_metric([*self._common.values(), *labels], value)
                yield family

    def _family(self, metric: Declared) -> CounterMetricFamily | GaugeMetricFamily:
        family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        return family(metric.name, metric.help, labels=[*self._common, *metric.labels])


def check_port(first_port: int) -> None:
    """Raises InputError where a `--metrics-port` leaves no room for the range behind it."""
    last = 65536 - PORTS
    if first_port and not 1024 <= first_port <= last:
        raise InputError(f"--metrics-port is {first_port}; it must lie between 1024 and {last}, or be 0 for none")


@contextlib.contextmanager
def served(
    numbers: Collector, host: str, first_port: int, own: int = 0, own_port_s: float = OWN_PORT_S
) -> Iterator[str]:
    """Serves numbers over HTTP as long as the context; yields where: "host:port".

    At `first_port + own`, or another of the `PORTS` from `first_port` on where that stays taken. Yields "" where none
    can be opened, which the log says (a run without metrics is better than none), and where `first_port` is 0.
    """
    registry = CollectorRegistry()
    registry.register(numbers)
    addr = "::" if ":" in host else "0.0.0.0"
    found = _first_free(registry, addr, first_port, own % PORTS, own_port_s) if first_port else None
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
    """The file from which Prometheus learns where the endpoints of a job are (file_sd_configs)."""
    return json.dumps([{"targets": list(addresses), "labels": {"job": job}}], indent=2).encode()


def _first_free(
    registry: CollectorRegistry, addr: str, first_port: int, own: int, own_port_s: float
) -> tuple[int, WSGIServer] | None:
    """A port that was free, and the server that has it now."""
    until, mine = time.monotonic() + own_port_s, first_port + own
    others = [port for port in range(first_port, first_port + PORTS) if port != mine]
    while (server := _listen(registry, addr, mine)) is None and time.monotonic() < until:
        time.sleep(0.2)
    if server:
        return mine, server
    for port in others:
        if server := _listen(registry, addr, port):
            _log.warning("metrics port %d is taken; they are served at %d", mine, port)
            return port, server
    last = first_port + PORTS - 1
    _log.warning("no metrics are served: none of the ports %d to %d could be opened", first_port, last)
    return None


def _listen(registry: CollectorRegistry, addr: str, port: int) -> WSGIServer | None:
    try:
        return start_http_server(port, addr, registry)[0]
    except Exception as error:  # whatever it is, the work goes on
        _log.debug("metrics port %d: %s", port, error)
        return None
