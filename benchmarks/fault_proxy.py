"""An HTTP proxy in front of an S3 server that injects faults by a seeded plan.

    with FaultProxy("http://127.0.0.1:9000", Plan(seed=1, share=0.1)) as proxy:
        ...  # clients with AWS_ENDPOINT_URL=proxy.url

Requests pass byte for byte, because signatures cover them, and responses with "Connection: close" added: a connection
serves one request. Both are buffered completely. Faults depend only on the plan, the request and the number of
its earlier attempts: they are the same with a new bucket and in any order of threads.
"""

import asyncio
import contextlib
import http.client
import io
import random
import re
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from dataclasses import dataclass

KINDS = ("cut", "reset", "stall", "unavailable", "forbidden", "expired", "corrupt")

_READ_BUFFER_BYTES = 1 << 20
# Query parameters that differ between runs, and so must not determine faults.
_VARYING = re.compile(r"\b(uploadId|continuation-token)=[^&]*")
_ERRORS = {
    kind: f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n<Error><Code>{code}</Code></Error>".encode()
    for kind, status, code in (
        ("unavailable", "503 Slow Down", "SlowDown"),
        ("forbidden", "403 Forbidden", "AccessDenied"),
        ("expired", "400 Bad Request", "ExpiredToken"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which requests fail, and how."""

    seed: int = 0
    share: float = 0.0
    """Fraction of the matching requests that fail."""
    kinds: tuple[str, ...] = ("cut", "reset", "unavailable")
    """Some of KINDS, equally likely. "corrupt" affects only GETs with a body."""
    in_a_row: int = 3
    """Maximum number of consecutive faults of one request (a resumed read is the same one); then an attempt passes."""
    stall_s: float = 60.0
    """Silence of a stalled response after its first bytes; then the connection is closed."""
    match: str = ""
    """Only requests whose key or query contains it fail."""

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds {self.kinds}; expected some of {KINDS}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The fault of one request."""

    kind: str
    where: float
    """The fraction of the body, in [0, 1), at which it happens."""
    uploading: bool
    """Whether a cut or reset comes while the request's body is read, if it has one: the server never sees it."""


def choose_fault(plan: Plan, request: str, attempts: int) -> Fault | None:
    """The fault of a request that was made `attempts` times before; deterministic."""
    draws = random.Random(f"{plan.seed} {attempts} {request}")
    is_pass = attempts % (plan.in_a_row + 1) == plan.in_a_row
    if draws.random() >= plan.share or is_pass or plan.match not in request:
        return None
    fault = Fault(kind=draws.choice(plan.kinds), where=draws.random(), uploading=draws.random() < 0.5)
    return None if fault.kind == "corrupt" and not request.startswith("GET ") else fault


def identify(method: str, target: str, byte_range: str) -> str:
    """A request without what differs between runs (bucket, IDs) and between attempts (the start of a resumed read)."""
    path, _, query = target.partition("?")
    key = path.removeprefix("/").partition("/")[2]
    return f"{method} {key}?{_VARYING.sub('', query)} {byte_range.rpartition('-')[2]}"


class FaultProxy:
    """Runs within its context; `stop` and `start` simulate a server that is down for a while.

    `plan` may be replaced at any time.
    """

    def __init__(self, upstream: str, plan: Plan = Plan(), listen: str = "127.0.0.1") -> None:
        self.plan = plan
        self.injected: Counter[str] = Counter()
        address = urllib.parse.urlsplit(upstream)
        self._upstream = (address.hostname or "", address.port or 80)
        self._attempts: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._listener = _bind((listen, 0))
        self._address = self._listener.getsockname()
        self.url = f"http://{self._address[0]}:{self._address[1]}"

    def __enter__(self) -> "FaultProxy":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._listener.close()

    def start(self) -> None:
        """Starts to listen, always on the same port."""
        listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(listening)), daemon=True)
        self._thread.start()
        listening.wait()

    def stop(self) -> None:
        """Refuses connections and resets the open ones, as if the server had stopped."""
        if not self._thread:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None
        # Bound but not listening: connections are refused, and no other process gets the port.
        self._listener = _bind(self._address)

    async def _run(self, listening: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, sock=self._listener, backlog=512, limit=_READ_BUFFER_BYTES)
        listening.set()
        await self._stopping.wait()
        server.close()
        # asyncio.run then cancels every _serve.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which is reset if a fault, the client, the server or `stop` ends it early."""
        try:
            await self._exchange(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            with contextlib.suppress(OSError, AttributeError):  # closed: without a descriptor, without a loop
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its response."""
        head = await _read_head(reader)
        fault = self._next_fault(head)
        if head.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        upload_bytes = int(head.headers.get("content-length", 0))
        if fault and fault.kind in ("cut", "reset") and fault.uploading and upload_bytes:
            await reader.readexactly(int(fault.where * upload_bytes))
            return await self._respond(b"", fault, writer)
        request = head.raw + await _read_body(reader, head)
        if fault and fault.kind in _ERRORS:
            return await self._respond(_ERRORS[fault.kind], fault, writer)
        response, body = await self._forward(head.first[0], request)
        if fault and fault.kind == "corrupt" and not body:
            fault = None
        await self._respond(_with_fault(response, body, fault), fault, writer)

    def _next_fault(self, head: "_Head") -> Fault | None:
        method, target, _ = head.first
        request = identify(method, target, head.headers.get("range", ""))
        self._attempts[request] += 1
        return choose_fault(self.plan, request, self._attempts[request] - 1)

    async def _forward(self, method: str, request: bytes) -> tuple["_Head", bytes]:
        """The server's response: its head and its body."""
        reader, writer = await asyncio.open_connection(*self._upstream, limit=_READ_BUFFER_BYTES)
        try:
            writer.write(request)
            while (head := await _read_head(reader)).first[1] == "100":  # the proxy has already sent it
                pass
            if method == "HEAD" or head.first[1] in ("204", "304"):
                return head, b""
            return head, await _read_body(reader, head, until_closed=True)
        finally:
            writer.close()

    async def _respond(self, data: bytes, fault: Fault | None, writer: asyncio.StreamWriter) -> None:
        """Sends the data; then the fault determines how the connection ends."""
        if fault:
            self.injected[fault.kind] += 1
        writer.write(data)
        await writer.drain()
        if fault and fault.kind == "stall":
            await asyncio.sleep(self.plan.stall_s)
        if fault and fault.kind == "reset":
            raise ConnectionResetError


@dataclass(frozen=True)
class _Head:
    """The first line and the headers of a request or a response."""

    raw: bytes
    first: list[str]
    headers: http.client.HTTPMessage


def _with_fault(response: _Head, body: bytes, fault: Fault | None) -> bytes:
    """What the client gets of a response."""
    head = response.raw.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    if not fault:
        return head + body
    at = int(fault.where * len(body))
    if fault.kind == "corrupt":
        return head + body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
    return head + body[:at] if body else b""  # the head alone would be a complete response without a body


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, _, lines = raw.partition(b"\r\n")
    return _Head(raw, first.decode("latin-1").split(" ", 2), http.client.parse_headers(io.BytesIO(lines)))


async def _read_body(reader: asyncio.StreamReader, head: _Head, until_closed: bool = False) -> bytes:
    """The body as sent; one of unknown length is empty, or ends with the connection."""
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        return await _read_chunks(reader)
    if length := head.headers.get("content-length", ""):
        return await reader.readexactly(int(length))
    return await reader.read() if until_closed else b""


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    raw, count = b"", 1
    while count:
        line = await reader.readuntil(b"\r\n")
        count = int(line.partition(b";")[0], 16)
        raw += line + (await reader.readexactly(count + 2) if count else b"")
    while line != b"\r\n":  # trailers
        line = await reader.readuntil(b"\r\n")
        raw += line
    return raw


def _bind(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    return listener
