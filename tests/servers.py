"""Serves ASGI applications in this process, with a client, and waits for server processes."""

import http.client
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from cluster.gate import Application


@contextmanager
def listening(app: Application) -> Iterator[int]:
    """Serves an application; yields the port."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes, http.client.HTTPMessage]:
    """Sends a request; returns status, body and headers of the response."""
    opened = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    opened.request(method, path, body or None)
    answer = opened.getresponse()
    found = answer.status, answer.read(), answer.headers
    opened.close()
    return found


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Waits until a URL responds. Raises AssertionError if `process` exits, TimeoutError after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        assert process.poll() is None, f"{process.args} exited with status {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise TimeoutError(f"{url}: no response within {timeout_s} s")
