"""An S3 server for tests and benchmarks: the one in AWS_ENDPOINT_URL, otherwise moto on a free port of loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

START_S = 60.0


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The AWS variables of a server that runs within the context. Raises RuntimeError if it does not start."""
    if "AWS_ENDPOINT_URL" in os.environ:
        yield {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_listens(server, port)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        server.kill()
        server.wait()


def _wait_until_it_listens(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"moto did not start (exit status {server.poll()}); install the extra test")
