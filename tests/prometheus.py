"""A real Prometheus, started like `make monitor`, and a client for its API."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MONITORING = Path(__file__).parents[1] / "k8s/monitoring"


class Prometheus:
    """Client of a server's HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ready(self) -> bool:
        """Whether it serves queries; at startup it refuses connections, then returns 503."""
        try:
            return bool(urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).status == 200)
        except OSError:  # base class of urllib's errors
            return False

    def ask(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant query. Raises AssertionError if the server rejects it."""
        values = {"query": expression} | ({"time": str(at)} if at else {})
        try:
            answer = urllib.request.urlopen(f"{self.url}/api/v1/query?{urllib.parse.urlencode(values)}", timeout=30)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        result = json.load(answer)["data"]["result"]
        assert isinstance(result, list), expression
        return result

    def value(self, expression: str, at: float | None = None) -> float | None:
        """The value of a query that returns at most one series; None if it returns none."""
        found = self.ask(expression, at)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None


@contextlib.contextmanager
def watching(run: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the targets.json of a run every second; the run may start later."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, MONITORING / "local.py", run, "--port", str(port), "--scrape-s", "1"]
    with subprocess.Popen(command) as process:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        try:
            wait_until(prometheus.ready)
            yield prometheus
        finally:
            process.send_signal(signal.SIGINT)  # Popen's __exit__ only waits
        assert process.wait(30) == 0


def wait_until(condition: Callable[[], Any], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"condition not met within {timeout_s} s"
        time.sleep(0.3)
