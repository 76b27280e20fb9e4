"""The fault proxy is transparent without faults, and injects those of its plan."""

import http.client
import random
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from io import BytesIO
from typing import Any

import boto3
import botocore.exceptions
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from hypothesis import given
from hypothesis import strategies as st

from tests.fault_proxy import KINDS, FaultProxy, Plan, draw

DATA = random.Random(0).randbytes(1_000_000)
SESSION = boto3.session.Session()  # shared: creating one loads the API's description
Proxied = Callable[..., AbstractContextManager[tuple[FaultProxy, "Client"]]]


class Client:
    """A boto3 client without retries, and raw connections with its signatures."""

    def __init__(self, variables: dict[str, str], url: str, bucket: str) -> None:
        path_style = {"addressing_style": "path"}
        config = Config(retries={"total_max_attempts": 1}, s3=path_style, signature_version="s3v4", read_timeout=20)
        self.s3 = SESSION.client(
            "s3",
            endpoint_url=url,
            config=config,
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=variables["AWS_REGION"],
        )
        self.bucket = bucket
        self.address = urllib.parse.urlsplit(url).netloc

    def put(self, key: str, data: bytes = DATA) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str, **wanted: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=key, **wanted)["Body"].read()

    def keys(self, prefix: str = "") -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", ())]

    def connect(self, timeout_s: float = 20.0) -> closing[http.client.HTTPConnection]:
        return closing(http.client.HTTPConnection(self.address, timeout=timeout_s))

    def target(self, operation: str, key: str) -> str:
        """Path and query, signed."""
        return self.s3.generate_presigned_url(operation, {"Bucket": self.bucket, "Key": key}).split(self.address)[1]


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


class CannedServer:
    """Responds to each connection with fixed bytes and records what it receives, up to `until`."""

    def __init__(self, response: bytes, until: bytes = b"\r\n\r\n") -> None:
        self._response, self._until = response, until
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # a second time
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.received = b""
                while not self.received.endswith(self._until):
                    self.received += connection.recv(65536)
                connection.sendall(self._response)


@contextmanager
def canned(response: bytes, until: bytes = b"\r\n\r\n") -> Iterator[tuple[CannedServer, socket.socket]]:
    """A canned server, and a socket to a proxy in front of it."""
    with closing(CannedServer(response, until)) as server, FaultProxy(server.url) as proxy:
        address = urllib.parse.urlsplit(proxy.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as client:
            yield server, client


def response_to(client: socket.socket, request: bytes) -> http.client.HTTPResponse:
    client.sendall(request)
    response = http.client.HTTPResponse(client, method=request.split()[0].decode())
    response.begin()
    return response


# ---- without faults


def test_objects_pass_both_ways(proxied: Proxied, direct: Client) -> None:
    with proxied() as (proxy, client):
        client.put("pass/new", DATA[:70_001])
        assert direct.get("pass/new") == DATA[:70_001]
        assert client.get("data") == DATA
        assert client.get("data", Range="bytes=1000-250000") == DATA[1000:250_001]
        head = client.s3.head_object(Bucket=client.bucket, Key="data")
        assert (head["ContentLength"], head["ETag"]) == (
            len(DATA),
            direct.s3.head_object(Bucket=client.bucket, Key="data")["ETag"],
        )
        client.s3.delete_object(Bucket=client.bucket, Key="pass/new")
        assert direct.keys("pass/") == []
        assert proxy.requests == 5
        assert not proxy.injected


def test_empty_objects_and_errors_pass(proxied: Proxied) -> None:
    with proxied() as (_, client):
        client.put("empty", b"")
        assert client.get("empty") == b""
        with pytest.raises(client.s3.exceptions.NoSuchKey):
            client.get("not-there")
        with pytest.raises(botocore.exceptions.ClientError, match="404"):
            client.s3.head_object(Bucket=client.bucket, Key="not-there")


def test_odd_keys_keep_their_spelling(proxied: Proxied, direct: Client) -> None:
    keys = sorted(f"odd/{name}" for name in ["a b", "a+b", "a%20b", "ä?ö=&#", "//x", "~*'()"])
    with proxied() as (_, client):
        for key in keys:
            client.put(key, key.encode())
            assert direct.get(key) == client.get(key) == key.encode()
        assert client.keys("odd/") == keys
        assert client.keys("odd/a b") == ["odd/a b"]


def test_multipart_uploads_pass(proxied: Proxied, direct: Client) -> None:
    data = random.Random(1).randbytes(11 << 20)
    settings = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, max_concurrency=3)
    with proxied() as (proxy, client):
        client.s3.upload_fileobj(BytesIO(data), client.bucket, "parts", Config=settings)
        assert proxy.requests == 5  # create, three parts, complete
    assert direct.get("parts") == data


def test_chunked_uploads_pass_and_the_connection_is_kept(proxied: Proxied, direct: Client) -> None:
    with proxied() as (_, client), client.connect() as connection:
        for key in ("chunked/1", "chunked/2"):
            chunks = iter([DATA[:10], DATA[10:200_000], DATA[200_000:]])
            connection.request("PUT", client.target("put_object", key), chunks, encode_chunked=True)
            assert connection.sock, "kept open"
            with connection.getresponse() as response:
                assert (response.status, response.read()) == (200, b"")
            assert direct.get(key) == DATA


def test_100_continue_is_sent_before_the_body(proxied: Proxied, direct: Client) -> None:
    with proxied() as (_, client), client.connect() as connection:
        connection.putrequest("PUT", client.target("put_object", "expected"))
        connection.putheader("Content-Length", "5")
        connection.putheader("Expect", "100-continue")
        connection.endheaders()
        assert connection.sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.send(b"hello")
        assert connection.getresponse().status == 200
    assert direct.get("expected") == b"hello"


def test_requests_pass_byte_for_byte() -> None:
    head = b"PUT //b/%7e%2F+x?b=%2b&a&c= HTTP/1.1\r\nhOST:  a.b:1\r\nX-B: 2\r\nx-a: \xe4\r\nContent-Length: 4\r\n\r\n"
    with canned(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", until=b"body") as (server, client):
        assert response_to(client, head + b"body").status == 200
        assert server.received == head + b"body"


def test_chunked_responses_pass_and_the_connection_is_kept() -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nT: 1\r\n\r\n"
    )
    with canned(response) as (_, client):
        for _ in range(2):
            assert response_to(client, b"GET /b/k HTTP/1.1\r\n\r\n").read() == b"hello world"


def test_responses_without_a_length_pass() -> None:
    with canned(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nhello") as (_, client):
        for _ in range(2):
            assert response_to(client, b"GET /b/k HTTP/1.1\r\n\r\n").read() == b"hello"


@pytest.mark.parametrize(
    ("method", "head"),
    [("HEAD", b"200 OK\r\nContent-Length: 99"), ("DELETE", b"204 No Content"), ("GET", b"304 Not Modified")],
)
def test_responses_without_a_body_pass_and_the_connection_is_kept(method: str, head: bytes) -> None:
    with canned(b"HTTP/1.1 " + head + b"\r\nX: y\r\n\r\n") as (_, client):
        for _ in range(2):
            response = response_to(client, f"{method} /b/k HTTP/1.1\r\n\r\n".encode())
            assert (response.status, response.headers["x"], response.read()) == (int(head[:3]), "y", b"")


def test_a_response_cut_by_the_server_is_cut() -> None:
    with canned(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello") as (_, client):
        with pytest.raises(http.client.IncompleteRead) as raised:
            response_to(client, b"GET /b/k HTTP/1.1\r\n\r\n").read()
        assert raised.value.partial == b"hello"


def test_an_unreachable_server_is_a_closed_connection() -> None:
    with canned(b"") as (server, client):
        server.close()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            response_to(client, b"GET /b/k HTTP/1.1\r\n\r\n")


def test_many_connections_at_once(proxied: Proxied) -> None:
    with proxied() as (proxy, client):
        together = threading.Barrier(32)

        def get(index: int) -> bytes:
            with client.connect() as connection:
                connection.connect()
                together.wait(timeout=20)
                start = index * 1000
                connection.request("GET", target, headers={"Range": f"bytes={start}-{start + 999}"})
                return connection.getresponse().read()

        target = client.target("get_object", "data")
        with ThreadPoolExecutor(32) as threads:
            got = list(threads.map(get, range(32)))
        assert b"".join(got) == DATA[:32_000]
        assert proxy.requests == 32


# ---- faults


def read_raw(client: Client, key: str = "data", timeout_s: float = 20.0) -> bytes:
    with client.connect(timeout_s) as connection:
        connection.request("GET", client.target("get_object", key))
        response = connection.getresponse()
        assert response.status == 200
        return response.read()


def test_a_cut_response_ends_early(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("cut",)) as (proxy, client):
        with pytest.raises(http.client.IncompleteRead) as raised:
            read_raw(client)
        assert DATA.startswith(raised.value.partial)
        assert raised.value.expected == len(DATA) - len(raised.value.partial)
        assert proxy.injected == {"cut": 1}


def test_a_reset_response_ends_with_an_error(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("reset",)) as (proxy, client):
        with pytest.raises(ConnectionResetError):
            read_raw(client)
        assert proxy.injected == {"reset": 1}


def test_a_stalled_response_is_silent_and_then_ends(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("stall",), stall_s=0.5) as (proxy, client):
        start = time.monotonic()
        with pytest.raises(http.client.IncompleteRead) as raised:
            read_raw(client)
        assert 0.5 < time.monotonic() - start < 5
        assert DATA.startswith(raised.value.partial)
        assert len(raised.value.partial) > 0
        assert proxy.injected == {"stall": 1}


def test_a_stalled_response_outlasts_the_clients_timeout(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("stall",), stall_s=30) as (_, client), pytest.raises(TimeoutError):
        read_raw(client, timeout_s=0.5)


@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
@pytest.mark.parametrize("operation", ["head_object", "delete_object"])
def test_a_response_without_a_body_is_lost(proxied: Proxied, direct: Client, kind: str, operation: str) -> None:
    direct.put(f"lost/{kind}", b"")
    with proxied(share=1, kinds=(kind,), stall_s=0.2) as (_, client):
        with pytest.raises(botocore.exceptions.HTTPClientError):
            getattr(client.s3, operation)(Bucket=client.bucket, Key=f"lost/{kind}")
        assert direct.keys(f"lost/{kind}") == ([] if operation == "delete_object" else [f"lost/{kind}"])


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_an_upload_is_cut_or_its_response_is_lost(proxied: Proxied, direct: Client, kind: str) -> None:
    with proxied(share=1, kinds=(kind,)) as (proxy, client):
        keys = [f"upload-{kind}/{index}" for index in range(10)]
        for key in keys:
            with pytest.raises(botocore.exceptions.HTTPClientError):
                client.put(key)
        assert proxy.injected == {kind: 10}
    arrived = direct.keys(f"upload-{kind}/")
    assert 0 < len(arrived) < 10
    assert all(direct.get(key) == DATA for key in arrived)


def test_an_unavailable_server_returns_503_and_does_nothing(proxied: Proxied, direct: Client) -> None:
    with proxied(share=1, kinds=("unavailable",)) as (proxy, client):
        with pytest.raises(botocore.exceptions.ClientError) as raised:
            client.put("unavailable")
        assert raised.value.response["Error"]["Code"] == "SlowDown"
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
        with pytest.raises(botocore.exceptions.ClientError, match="503"):
            client.s3.head_object(Bucket=client.bucket, Key="unavailable")
        assert proxy.injected == {"unavailable": 2}
    assert direct.keys("unavailable") == []


def test_the_connection_survives_an_unavailable_server(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("unavailable",), in_a_row=1) as (_, client), client.connect() as connection:
        for status in (503, 200):
            connection.request("PUT", client.target("put_object", "again"), DATA)
            with connection.getresponse() as response:
                assert response.status == status
                response.read()
            assert connection.sock, "kept open"


def test_a_corrupt_response_differs_in_one_byte(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("corrupt",)) as (proxy, client):
        got = read_raw(client)
        assert len(got) == len(DATA)
        assert sum(a != b for a, b in zip(got, DATA, strict=True)) == 1
        assert proxy.injected == {"corrupt": 1}


def test_only_reads_are_corrupted(proxied: Proxied, direct: Client) -> None:
    with proxied(share=1, kinds=("corrupt",)) as (proxy, client):
        client.put("whole", DATA)
        client.put("nothing", b"")
        assert client.get("nothing") == b""
        assert not proxy.injected
    assert direct.get("whole") == DATA


def test_only_paths_that_match_fail(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("unavailable",), match="/shards/") as (_, client):
        client.put("other/x", b"1")
        with pytest.raises(botocore.exceptions.ClientError, match="SlowDown"):
            client.put("shards/x", b"1")


# ---- the plan


def outcome(client: Client, key: str, offset: int) -> str:
    try:
        got = client.get(key, Range=f"bytes={offset}-{offset + 9_999}")
    except botocore.exceptions.ResponseStreamingError as error:
        return f"{error}"
    except botocore.exceptions.BotoCoreError as error:
        return type(error).__name__
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    return "whole" if got == DATA[offset : offset + 10_000] else f"byte {different(got, DATA[offset:])}"


def different(a: bytes, b: bytes) -> int:
    return next(index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def outcomes(client: Client, num_threads: int, shuffled_by: int) -> dict[tuple[str, int], list[str]]:
    """Outcomes of three GETs of each of several objects and ranges."""
    requests = [("data", 10_000 * index) for index in range(20)]
    random.Random(shuffled_by).shuffle(requests)
    with ThreadPoolExecutor(num_threads) as threads:
        return dict(threads.map(lambda what: (what, [outcome(client, *what) for _ in range(3)]), requests))


def test_faults_are_the_same_in_every_order_of_threads(proxied: Proxied) -> None:
    plan = {"share": 0.5, "kinds": ("cut", "unavailable", "corrupt"), "in_a_row": 1000}
    with proxied(seed=7, **plan) as (proxy, client), proxied(seed=7, **plan) as (other_proxy, other):
        once, again = outcomes(client, 1, shuffled_by=0), outcomes(other, 8, shuffled_by=1)
        assert once == again
        assert proxy.injected == other_proxy.injected
        assert set(proxy.injected) == set(plan["kinds"])
    with proxied(seed=8, **plan) as (_, client):
        assert outcomes(client, 1, shuffled_by=0) != once


@given(share=st.floats(0, 1), seed=st.integers(), in_a_row=st.integers(0, 4))
def test_a_share_of_requests_fails_in_every_kind(share: float, seed: int, in_a_row: int) -> None:
    drawn = [draw(Plan(seed=seed, share=share, kinds=KINDS, in_a_row=in_a_row), "GET x", n) for n in range(1000)]
    faults = [fault for fault in drawn if fault]
    assert abs(len(faults) - 1000 * share) < 80
    assert all(0 <= fault.where < 1 for fault in faults)
    assert share < 0.1 or {fault.kind for fault in faults} == set(KINDS)


def test_a_request_passes_after_the_maximum_of_consecutive_faults(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("unavailable",), in_a_row=3) as (_, client):
        got = [outcome(client, "data", 0) for _ in range(8)]
        assert got == ["SlowDown", "SlowDown", "SlowDown", "whole"] * 2


def test_a_reader_that_resumes_after_a_cut_passes_too(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("unavailable",), in_a_row=3) as (_, client):
        got = [outcome(client, "data", offset) for offset in range(4)]
        assert got == ["SlowDown", "SlowDown", "SlowDown", "whole"]


def test_other_objects_do_not_count(proxied: Proxied, direct: Client) -> None:
    direct.put("data2")
    with proxied(share=1, kinds=("unavailable",), in_a_row=1) as (_, client):
        assert [outcome(client, key, 0) for key in ("data", "data2", "data", "data2")] == ["SlowDown"] * 2 + [
            "whole"
        ] * 2


def test_a_new_bucket_changes_no_fault(proxied: Proxied, direct: Client) -> None:
    other = f"{direct.bucket}-2"
    direct.s3.create_bucket(Bucket=other)
    direct.s3.put_object(Bucket=other, Key="data", Body=DATA)
    got = []
    for bucket in (direct.bucket, other):
        with proxied(share=0.5) as (_, client):
            client.bucket = bucket
            got.append([outcome(client, "data", 10_000 * index) for index in range(20)])
    assert got[0] == got[1]


@pytest.mark.parametrize("plan", [{"kinds": ("cut", "explode")}, {"share": 1.5}, {"share": 0.1, "kinds": ()}])
def test_an_invalid_plan_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Plan(**plan)


# ---- a server that stops


def test_a_stopped_proxy_refuses_and_a_started_one_serves_again(proxied: Proxied) -> None:
    with proxied() as (proxy, client):
        for _ in range(3):
            url = proxy.url
            proxy.stop()
            proxy.stop()
            with pytest.raises(botocore.exceptions.EndpointConnectionError):
                client.get("data")
            proxy.start()
            proxy.start()
            assert (client.get("data"), proxy.url) == (DATA, url)


def test_stopping_resets_idle_connections(proxied: Proxied) -> None:
    with proxied() as (proxy, client), client.connect() as connection:
        connection.connect()
        time.sleep(0.1)
        proxy.stop()
        with pytest.raises(ConnectionResetError):
            connection.sock.recv(1)


def test_stopping_resets_stalled_responses(proxied: Proxied) -> None:
    with proxied(share=1, kinds=("stall",), stall_s=60) as (proxy, client), client.connect() as connection:
        connection.request("GET", client.target("get_object", "data"))
        response = connection.getresponse()
        threading.Timer(0.3, proxy.stop).start()
        with pytest.raises(ConnectionResetError):
            response.read()


def test_stopping_resets_unread_responses(proxied: Proxied, direct: Client) -> None:
    direct.put("big", DATA * 20)  # more than sockets buffer
    with proxied() as (proxy, client), client.connect() as connection:
        connection.request("GET", client.target("get_object", "big"))
        response = connection.getresponse()
        time.sleep(0.1)
        start = time.monotonic()
        proxy.stop()
        assert time.monotonic() - start < 5
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            response.read()


def test_stopping_ends_every_thread(proxied: Proxied) -> None:
    before = threading.active_count()
    with proxied(share=1, kinds=("stall",), stall_s=60) as (_, client), ThreadPoolExecutor(16) as threads:
        for _ in range(16):
            threads.submit(read_raw, client, "data", 0.5)
        time.sleep(0.2)
        assert threading.active_count() > before
    assert threading.active_count() == before
