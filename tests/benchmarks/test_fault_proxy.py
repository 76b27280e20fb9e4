"""The fault proxy is transparent without faults, and injects those of its plan."""

import io
import random
import re
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, HTTPClientError

from benchmarks.fault_proxy import KINDS, FaultProxy, Plan, choose_fault

DATA = random.Random(0).randbytes(1_000_000)
SESSION = boto3.session.Session()  # shared: creating one loads the API's description
Proxied = Callable[..., AbstractContextManager[tuple[FaultProxy, "Client"]]]


class Client:
    """A boto3 client without retries."""

    def __init__(self, variables: dict[str, str], url: str, bucket: str) -> None:
        keys = {name.lower(): variables[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, read_timeout=10)
        self.s3 = SESSION.client("s3", variables["AWS_REGION"], endpoint_url=url, config=config, **keys)
        self.bucket = bucket

    def put(self, key: str, data: bytes = DATA) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str, **wanted: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=key, **wanted)["Body"].read()

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", ())]


@pytest.fixture(scope="module")
def direct(s3_server: dict[str, str]) -> Client:
    """A client without the proxy, and a bucket with the object "data"."""
    client = Client(s3_server, s3_server["AWS_ENDPOINT_URL"], f"test-{uuid.uuid4().hex[:12]}")
    client.s3.create_bucket(Bucket=client.bucket)
    client.put("data")
    return client


@pytest.fixture
def proxied(s3_server: dict[str, str], direct: Client) -> Proxied:
    """proxied(**plan) runs a proxy with that plan, and returns it with a client."""

    @contextmanager
    def start(**plan: Any) -> Iterator[tuple[FaultProxy, Client]]:
        with FaultProxy(s3_server["AWS_ENDPOINT_URL"], Plan(**plan)) as proxy:
            yield proxy, Client(s3_server, proxy.url, direct.bucket)

    return start


@contextmanager
def sockets(**plan: Any) -> Iterator[tuple[socket.socket, FaultProxy, socket.socket]]:
    """A listening server, a proxy in front of it, and a client's connection to the proxy."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        FaultProxy(f"http://127.0.0.1:{server.getsockname()[1]}", Plan(**plan)) as proxy,
        socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])), timeout=10) as client,
    ):
        yield server, proxy, client


def outcome(client: Client, key: str = "data", start: int = 0, end: int = 9_999) -> str:
    """What happened to a GET of some bytes."""
    try:
        got = client.get(key, Range=f"bytes={start}-{end}")
    except ClientError as error:
        return error.response["Error"]["Code"]
    except BotoCoreError as error:
        return f"{error}"
    wrong = [nth for nth, (a, b) in enumerate(zip(got, DATA[start : end + 1], strict=True)) if a != b]
    return f"wrong at {wrong}" if wrong else "correct"


# ---- without faults


def test_objects_pass_both_ways(proxied: Proxied, direct: Client) -> None:
    keys = sorted(f"pass/{name}" for name in ["a b", "a+b", "a%20b", "ä?ö=&#", "//x", "~*'()"])
    with proxied() as (proxy, client):
        for key in keys:
            client.put(key, key.encode())
            assert direct.get(key) == client.get(key) == key.encode()
        assert client.keys("pass/") == keys
        client.put("pass/empty", b"")
        assert client.get("pass/empty") == b""
        client.s3.delete_object(Bucket=client.bucket, Key="pass/empty")
        assert direct.keys("pass/empty") == []
        assert client.get("data") == DATA
        assert client.get("data", Range="bytes=1000-250000") == DATA[1000:250_001]
        assert client.s3.head_object(Bucket=client.bucket, Key="data")["ContentLength"] == len(DATA)
        with pytest.raises(client.s3.exceptions.NoSuchKey):
            client.get("pass/empty")
        upload = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
        client.s3.upload_fileobj(io.BytesIO(DATA * 11), client.bucket, "parts", Config=upload)
        assert direct.get("parts") == DATA * 11
        assert not proxy.injected


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        (b"PUT", b"etag:  x\r\nContent-Length: 5\r\n\r\nhello"),
        (b"PUT", b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: 1\r\n\r\n"),
        (b"PUT", b"x: y\r\n\r\nuntil the server closes"),
        (b"HEAD", b"Content-Length: 99\r\n\r\n"),
    ],
)
@pytest.mark.parametrize(
    "body", [b"Content-Length: 1\r\n\r\nx", b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"]
)
def test_messages_pass_byte_for_byte(method: bytes, body: bytes, rest: bytes) -> None:
    request = method + b" //b/%7e%2F+x?b=%2b&a&c= HTTP/1.1\r\nhOST:  a.b:1\r\nX-B: 2\r\nx-a: \xe4\r\n" + body
    with sockets() as (server, _, client):
        client.sendall(request)
        with server.accept()[0] as upstream:
            assert upstream.recv(len(request), socket.MSG_WAITALL) == request
            upstream.sendall(b"HTTP/1.1 200 OK\r\n" + rest)
        assert client.recv(1000, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + rest


def test_a_response_that_the_server_cuts_is_a_lost_connection() -> None:
    with sockets() as (server, _, client):
        client.sendall(b"GET /b/k HTTP/1.1\r\n\r\n")
        with server.accept()[0] as upstream:
            upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# ---- faults


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_fails_by_each_kind(proxied: Proxied, kind: str) -> None:
    seen = {
        "reset": "ConnectionResetError",
        "unavailable": "SlowDown",
        "forbidden": "AccessDenied",
        "expired": "ExpiredToken",
        "corrupt": r"wrong at \[\d+\]$",
    }
    with proxied(share=1, kinds=(kind,), stall_s=0.5) as (proxy, client):
        before = time.monotonic()
        assert re.search(seen.get(kind, "IncompleteRead"), outcome(client))
        assert (time.monotonic() - before > 0.5) == (kind == "stall")
        assert proxy.injected == {kind: 1}


@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
def test_a_response_without_a_body_is_lost(proxied: Proxied, direct: Client, kind: str) -> None:
    direct.put("lost", b"")
    with proxied(share=1, kinds=(kind,), stall_s=0.2) as (_, client):
        with pytest.raises(HTTPClientError):
            client.s3.delete_object(Bucket=client.bucket, Key="lost")
        assert direct.keys("lost") == []


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_an_upload_is_cut_or_its_response_is_lost(proxied: Proxied, direct: Client, kind: str) -> None:
    with proxied(share=1, kinds=(kind,)) as (proxy, client):
        for nth in range(10):
            with pytest.raises(HTTPClientError):
                client.put(f"upload-{kind}/{nth}")
        assert proxy.injected == {kind: 10}
    arrived = direct.keys(f"upload-{kind}/")
    assert 0 < len(arrived) < 10
    assert all(direct.get(key) == DATA for key in arrived)


def test_an_unavailable_server_does_nothing_and_uploads_are_not_corrupted(proxied: Proxied, direct: Client) -> None:
    with proxied(share=1, kinds=("unavailable",), match="refused/") as (_, client):
        with pytest.raises(ClientError) as raised:
            client.put("refused/x")
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
        client.put("other/x", b"no match")
    assert direct.keys("refused/") == []
    with proxied(share=1, kinds=("corrupt",)) as (proxy, client):
        client.put("other/x")
        assert not proxy.injected
    assert direct.get("other/x") == DATA


# ---- the plan


def outcomes(client: Client, num_threads: int, shuffled_by: int) -> dict[int, list[str]]:
    """Outcomes of three GETs of each of several ranges."""
    starts = [10_000 * nth for nth in range(20)]
    random.Random(shuffled_by).shuffle(starts)
    with ThreadPoolExecutor(num_threads) as threads:
        each = threads.map(lambda start: [outcome(client, "data", start, start + 9_999) for _ in range(3)], starts)
        return dict(zip(starts, each, strict=True))


def test_a_seed_determines_faults_in_every_order_and_bucket(proxied: Proxied, direct: Client) -> None:
    plan: dict[str, Any] = {"share": 0.5, "kinds": ("cut", "unavailable", "corrupt")}
    other_bucket = f"{direct.bucket}-2"
    direct.s3.create_bucket(Bucket=other_bucket)
    direct.s3.put_object(Bucket=other_bucket, Key="data", Body=DATA)
    with proxied(seed=7, **plan) as (proxy, client), proxied(seed=7, **plan) as (other_proxy, other):
        other.bucket = other_bucket
        once = outcomes(client, 1, shuffled_by=0)
        assert outcomes(other, 8, shuffled_by=1) == once
        assert proxy.injected == other_proxy.injected
        assert set(proxy.injected) == set(plan["kinds"])
    with proxied(seed=8, **plan) as (_, client):
        assert outcomes(client, 1, shuffled_by=0) != once


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_a_share_of_requests_fails_in_every_kind(share: float) -> None:
    faults = [choose_fault(Plan(share=share, kinds=KINDS), f"GET {nth}", 0) for nth in range(1000)]
    kinds = Counter(fault.kind for fault in faults if fault)
    assert abs(kinds.total() - 1000 * share) < 80
    assert set(kinds) == (set(KINDS) if share else set())


@pytest.mark.parametrize("resumes", [False, True])
def test_a_request_passes_after_the_maximum_of_consecutive_faults(proxied: Proxied, resumes: bool) -> None:
    with proxied(share=1, kinds=("unavailable",), in_a_row=3) as (_, client):
        got = [outcome(client, start=nth * resumes) for nth in range(8)]
        assert got == ["SlowDown", "SlowDown", "SlowDown", "correct"] * 2


@pytest.mark.parametrize("kinds", [("cut", "explode"), ()])
def test_unknown_kinds_are_refused(kinds: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{kinds}")):
        Plan(kinds=kinds)


# ---- a server that stops


def test_a_stopped_proxy_refuses_and_a_restarted_one_serves_on_the_same_port(proxied: Proxied) -> None:
    with proxied() as (proxy, client):
        for _ in range(3):
            url = proxy.url
            proxy.stop()
            proxy.stop()
            with pytest.raises(EndpointConnectionError):
                client.get("data")
            proxy.start()
            assert (client.get("data"), proxy.url) == (DATA, url)


@pytest.mark.parametrize("state", ["idle", "waiting", "stalled", "unread"])
def test_stopping_resets_open_connections_and_ends_the_thread(state: str) -> None:
    threads = threading.active_count()
    with sockets(share=float(state == "stalled"), kinds=("stall",)) as (server, proxy, client):
        if state != "idle":
            client.sendall(b"GET /b/k HTTP/1.1\r\n\r\n")
            upstream, _ = server.accept()
        if state in ("stalled", "unread"):
            body = DATA * 20  # more than sockets buffer
            upstream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        time.sleep(0.2)
        proxy.stop()
        assert threading.active_count() == threads
        with pytest.raises(ConnectionResetError):
            all(iter(lambda: client.recv(1 << 20), b""))
