"""ASGI applications behind a real server in this process, and a client for them."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from cluster.gate import Application


@contextmanager
def listening(app: Application) -> Iterator[int]:
    """The port at which an application is served."""
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
    """Status, body and headers of the answer."""
    opened = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    opened.request(method, path, body or None)
    answer = opened.getresponse()
    found = answer.status, answer.read(), answer.headers
    opened.close()
    return found
