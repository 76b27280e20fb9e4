"""The gate before services of all kinds, over real HTTP: good ones, lost ones, slow ones; within limits or not."""

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
    """Answers with what it was sent."""
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


async def crash(scope: Message, receive: Receive, send: Send) -> None:
    raise RuntimeError("an accident")


async def lose(scope: Message, receive: Receive, send: Send) -> None:
    """As Serve's proxy does when the replica has died: returns without a word."""


async def hang(scope: Message, receive: Receive, send: Send) -> None:
    await asyncio.sleep(60)


async def swallow(scope: Message, receive: Receive, send: Send) -> None:
    """As Serve's proxy is cancelled: without a word, too."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


async def cut(scope: Message, receive: Receive, send: Send) -> None:
    """As when a replica dies in the middle of its answer."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half of", "more_body": True})
    raise RuntimeError("an accident")


async def large(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


async def tell_headers(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b" ".join(sorted(name for name, _ in scope["headers"]))})


LARGE = 20_000_000


@contextmanager
def gated(app: Application, **limits: float) -> Iterator[int]:
    """The port of a server with a gate before the app."""
    before = Gate(app, Limits(**limits))
    with listening(before) as port:
        yield port
    assert before.held_bytes == 0


def post(port: int, body: bytes, path: str = "/") -> tuple[int, bytes, http.client.HTTPMessage]:
    return ask(port, "POST", path, body)


def test_a_body_passes_whole_and_so_does_the_answer() -> None:
    body = bytes(range(256)) * 4000
    with gated(echo) as port:
        assert post(port, body)[:2] == (200, body)
        assert post(port, b"")[:2] == (200, b"")


@pytest.mark.parametrize("app", [crash, lose, cut])
def test_what_is_lost_behind_the_gate_may_be_sent_again(app: Application) -> None:
    with gated(app, retry_after_s=7) as port:
        status, sentence, headers = post(port, b"x")
    assert (status, headers["retry-after"]) == (503, "7")
    assert sentence == b"The service lost this request; send it again."


@pytest.mark.parametrize("app", [hang, swallow])
def test_an_answer_is_waited_for_so_long_and_no_longer(app: Application) -> None:
    with gated(app, answer_s=0.2) as port:
        status, sentence, headers = post(port, b"x")
    assert (status, headers["retry-after"]) == (503, "5")
    assert sentence == b"The service gave no answer within 0.2 s; send it again."


def test_a_body_over_the_limit_is_refused_to_a_client_that_sends_all_of_it_first() -> None:
    with gated(echo, body_bytes=1000, held_bytes=5000) as port:
        assert post(port, bytes(1000))[0] == 200
        status, sentence, _ = post(port, bytes(20_000_000))
        assert (status, sentence) == (413, b"The body has 20000000 bytes; at most 1000 are taken.")


def test_bodies_are_held_up_to_a_limit_and_given_back() -> None:
    with gated(hang, body_bytes=600, held_bytes=1000, answer_s=0.5) as port:
        first = threading.Thread(target=post, args=(port, bytes(600)))
        first.start()
        time.sleep(0.2)
        status, sentence, headers = post(port, bytes(600))
        assert (status, headers["retry-after"]) == (503, "5")
        assert b"Too many requests are waiting" in sentence
        first.join()
        assert b"no answer" in post(port, bytes(600))[1]


def test_an_upload_that_stops_is_ended_and_one_that_is_broken_off_forgotten() -> None:
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


def test_an_answer_that_nobody_reads_is_held_for_so_long_and_counted() -> None:
    before = Gate(large, Limits(download_s=2))
    with listening(before) as port:
        assert ask(port, "GET", "/")[1] == bytes(LARGE)
        with socket.create_connection(("127.0.0.1", port)) as opened:
            opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            until = time.monotonic() + 20
            while before.held_bytes < LARGE:
                assert time.monotonic() < until
                time.sleep(0.01)
            while before.held_bytes:
                assert time.monotonic() < until
                time.sleep(0.01)
            received = 0
            while chunk := opened.recv(1 << 20):
                received += len(chunk)
            assert 0 < received < LARGE  # the connection was cut


def test_clients_give_the_proxy_no_orders() -> None:
    with gated(tell_headers) as port, contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as opened:
        opened.putrequest("GET", "/", skip_host=True, skip_accept_encoding=True)
        opened.putheader("Accept", "image/png")
        opened.putheader("X-Request-Timeout-Seconds", "-1")
        opened.putheader("serve_multiplexed_model_id", "x")
        opened.putheader("X-Strange", b"\xff")
        opened.putheader("Host", "x")
        opened.endheaders()
        assert opened.getresponse().read() == b"accept host"


def test_the_proxys_own_health_is_asked_past_the_gate() -> None:
    with gated(echo, body_bytes=7, held_bytes=7) as port:
        status, body, _ = post(port, bytes(8), path="/-/healthz")
        assert (status, body) == (200, bytes(8))
        assert post(port, bytes(8), path="/-/healthz/x")[0] == 413


def test_limits_are_variables_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Limits.of_environment() == Limits()
    monkeypatch.setenv("GATE_BODY_BYTES", "5000")
    monkeypatch.setenv("GATE_UPLOAD_S", "2.5")
    assert Limits.of_environment() == Limits(body_bytes=5000, upload_s=2.5)
    (made,) = gate.middlewares()
    assert made.kwargs["limits"].body_bytes == 5000


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GATE_BODY_BYTES", "a lot", "GATE_BODY_BYTES is a lot; it must be a number"),
        ("GATE_ANSWER_S", "-1", "GATE_ANSWER_S is -1.0; it must be above 0"),
        ("GATE_HELD_BYTES", "7", "GATE_HELD_BYTES is 7, less than one body of 33554432"),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        Limits.of_environment()


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_a_body_in_parts_is_put_together(parts: list[bytes]) -> None:
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
