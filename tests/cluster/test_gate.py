"""The gate in front of services that work, crash, hang or lose requests, over real HTTP, within and above limits."""

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import gate
from cluster.errors import InputError
from cluster.gate import Application, Gate, Limits, Message, Receive, Send
from tests.servers import ask, listening


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Responds with the request body."""
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


async def crash(scope: Message, receive: Receive, send: Send) -> None:
    raise RuntimeError("a crash")


async def lose(scope: Message, receive: Receive, send: Send) -> None:
    """Like Serve's proxy when the replica has died: returns without a response."""


async def hang(scope: Message, receive: Receive, send: Send) -> None:
    await asyncio.sleep(60)


async def swallow(scope: Message, receive: Receive, send: Send) -> None:
    """Like Serve's proxy when it is cancelled: returns without a response."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


async def cut(scope: Message, receive: Receive, send: Send) -> None:
    """Like a replica that dies in the middle of its response."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half of", "more_body": True})
    raise RuntimeError("a crash")


async def large(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


async def list_headers(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b" ".join(sorted(name for name, _ in scope["headers"]))})


LARGE = 20_000_000


@contextmanager
def gated(app: Application, **limits: float) -> Iterator[int]:
    """The port of a server with a gate in front of the app; no bytes are held in the end."""
    middleware = Gate(app, Limits(**limits))
    with listening(middleware) as port:
        yield port
    assert middleware.held_bytes == 0


def post(port: int, body: bytes, path: str = "/") -> tuple[int, bytes, http.client.HTTPMessage]:
    return ask(port, "POST", path, body)


def test_body_and_response_pass_unchanged() -> None:
    body = bytes(range(256)) * 4000
    with gated(echo) as port:
        assert post(port, body)[:2] == (200, body)
        assert post(port, b"")[:2] == (200, b"")


@pytest.mark.parametrize("app", [crash, lose, cut])
def test_lost_request_is_answered_with_retry_after(app: Application) -> None:
    with gated(app, retry_after_s=7) as port:
        status, sentence, headers = post(port, b"x")
    assert (status, headers["retry-after"]) == (503, "7")
    assert b"lost" in sentence


@pytest.mark.parametrize("app", [hang, swallow])
def test_response_that_takes_too_long_is_answered_with_retry_after(app: Application) -> None:
    with gated(app, answer_s=0.2) as port:
        status, sentence, headers = post(port, b"x")
    assert (status, headers["retry-after"]) == (503, "5")
    assert b"0.2 s" in sentence


def test_client_that_sends_a_too_large_body_before_it_reads_gets_413() -> None:
    with gated(echo, body_bytes=1000, held_bytes=5000) as port:
        assert post(port, bytes(1000))[0] == 200
        status, sentence, headers = post(port, bytes(20_000_000))
        assert (status, headers["error-code"]) == (413, "too-many-bytes")
        assert b"20000000" in sentence
        assert b" 1000." in sentence


def test_bodies_are_held_up_to_a_limit_and_released() -> None:
    with gated(hang, body_bytes=600, held_bytes=1000, answer_s=0.5) as port:
        first = threading.Thread(target=post, args=(port, bytes(600)))
        first.start()
        time.sleep(0.2)
        status, sentence, headers = post(port, bytes(600))
        assert (status, headers["retry-after"], headers["error-code"]) == (503, "5", "busy")
        assert b"Too many" in sentence
        first.join()
        assert b"0.5 s" in post(port, bytes(600))[1]  # it reached the app


def test_stalled_upload_times_out_and_disconnected_one_releases_its_bytes() -> None:
    with gated(echo, upload_s=0.3) as port:
        for is_cut in (True, False):
            opened = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            opened.putrequest("POST", "/")
            opened.putheader("Content-Length", "100")
            opened.endheaders()
            opened.send(b"x")
            if not is_cut:
                assert opened.getresponse().status == 408
            opened.close()
        assert post(port, b"x")[0] == 200


def test_response_that_is_not_read_counts_as_held_until_its_timeout() -> None:
    middleware = Gate(large, Limits(download_s=2))
    with listening(middleware) as port:
        assert ask(port, "GET", "/")[1] == bytes(LARGE)
        with socket.create_connection(("127.0.0.1", port)) as opened:
            opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            until = time.monotonic() + 20
            while middleware.held_bytes < LARGE:
                assert time.monotonic() < until
                time.sleep(0.01)
            while middleware.held_bytes:
                assert time.monotonic() < until
                time.sleep(0.01)
            received = 0
            while chunk := opened.recv(1 << 20):
                received += len(chunk)
            assert 0 < received < LARGE  # the connection was cut


def test_control_headers_of_the_proxy_are_dropped() -> None:
    with gated(list_headers) as port, contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as opened:
        opened.putrequest("GET", "/", skip_host=True, skip_accept_encoding=True)
        opened.putheader("Accept", "image/png")
        opened.putheader("X-Request-Timeout-Seconds", "-1")
        opened.putheader("serve_multiplexed_model_id", "x")
        opened.putheader("X-Strange", b"\xff")
        opened.putheader("Host", "x")
        opened.endheaders()
        assert opened.getresponse().read() == b"accept host"


def test_proxys_own_endpoints_bypass_the_limits() -> None:
    with gated(echo, body_bytes=7, held_bytes=7) as port:
        status, body, _ = post(port, bytes(8), path="/-/healthz")
        assert (status, body) == (200, bytes(8))
        assert post(port, bytes(8), path="/-/healthz/x")[0] == 413


def test_limits_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Limits.of_environment() == Limits()
    monkeypatch.setenv("GATE_BODY_BYTES", "5000")
    monkeypatch.setenv("GATE_UPLOAD_S", "2.5")
    assert Limits.of_environment() == Limits(body_bytes=5000, upload_s=2.5)
    (made,) = gate.middlewares()
    assert made.kwargs["limits"].body_bytes == 5000


@pytest.mark.parametrize(
    ("name", "value", "pattern"),
    [
        ("GATE_BODY_BYTES", "a lot", "GATE_BODY_BYTES is .*a lot"),
        ("GATE_ANSWER_S", "-1", "GATE_ANSWER_S is -1"),
        ("GATE_HELD_BYTES", "7", "GATE_HELD_BYTES is 7;.* 33554432"),
    ],
)
def test_invalid_limit_is_rejected_naming_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, pattern: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=pattern):
        Limits.of_environment()


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_chunked_body_is_joined(parts: list[bytes]) -> None:
    sent: list[Message] = []
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request"})

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "method": "POST", "headers": [(b"transfer-encoding", b"chunked")]}
    asyncio.run(Gate(echo, Limits())(scope, receive, send))
    assert sent[-1]["body"] == b"".join(parts)
