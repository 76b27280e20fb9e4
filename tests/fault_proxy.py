"""An HTTP proxy in front of an S3 server that injects faults by a seeded plan.

    with FaultProxy("http://127.0.0.1:9000", Plan(seed=1, share=0.1)) as proxy:
        ...  # clients with AWS_ENDPOINT_URL=proxy.url

Requests without a fault pass unchanged: request line and headers byte for byte, because signatures cover them.
"""

import contextlib
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("cut", "reset", "stall", "unavailable", "corrupt")

_PIECE_BYTES = 1 << 18
_MAX_LINE_BYTES = 1 << 16
# In a body of unknown length, a fault comes within this many bytes.
_UNKNOWN_BYTES = 1 << 16
# Query parameters that differ between runs, and so must not determine faults.
_VARYING = re.compile(r"(uploadid|continuation-token|x-amz-[a-z-]*)=", re.IGNORECASE)
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which requests fail, and how."""

    seed: int = 0
    share: float = 0.0
    """Fraction of the matching requests that fail."""
    kinds: tuple[str, ...] = ("cut", "reset", "unavailable")
    """Some of KINDS, equally likely. "corrupt" affects only GETs with a body."""
    in_a_row: int = 3
    """Maximum number of consecutive faults on one object (method and path); then a request passes."""
    stall_s: float = 60.0
    """Silence of a stalled response after its first bytes; then the connection is closed."""
    match: str = ""
    """Only requests whose raw path contains it fail."""

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds {sorted(unknown)} are unknown; expected some of {KINDS}")
        if not 0 <= self.share <= 1 or (self.share and not self.kinds):
            raise ValueError(f"share {self.share} of kinds {self.kinds}; expected 0 to 1, and a kind if above 0")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The fault of one request."""

    kind: str
    where: float
    """The fraction of the body, in [0, 1), at which it happens."""
    uploading: bool
    """Whether a cut or reset comes while the request's body is read, if it has one."""


def draw(plan: Plan, request: str, attempts: int) -> Fault | None:
    """The fault of a request that was made `attempts` times before; deterministic."""
    draws = random.Random(f"{plan.seed} {attempts} {request}")
    if draws.random() >= plan.share:
        return None
    return Fault(kind=draws.choice(plan.kinds), where=draws.random(), uploading=draws.random() < 0.5)


class FaultProxy:
    """Runs within its context; `stop` and `start` simulate a server that is down for a while.

    Faults do not depend on the bucket's name, so tests may use a new bucket each time.
    """

    def __init__(self, upstream: str, plan: Plan = Plan(), listen: str = "127.0.0.1") -> None:
        address = urllib.parse.urlsplit(upstream)
        if address.scheme != "http" or not address.hostname:
            raise ValueError(f"upstream {upstream!r}; expected http://host:port")
        self.plan = plan
        self.injected: Counter[str] = Counter()
        self.requests = 0
        self._upstream = (address.hostname, address.port or 80)
        self._schedule = _Schedule(plan)
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._accepting: threading.Thread | None = None
        self._listener = _bind(listen, 0)
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
        if self._accepting:
            return
        self._listener.listen(512)
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def stop(self) -> None:
        """Refuses connections and resets the open ones, as if the server had stopped."""
        if not self._accepting:
            return
        accepting, self._accepting = self._accepting, None
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        accepting.join()
        self._listener.close()
        # Bound but not listening: connections are refused, and no other process gets the port.
        self._listener = _bind(*self._address)
        self._reset_connections()

    def _reset_connections(self) -> None:
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            with self._lock:
                sides, threads = list(self._open), list(self._threads)
            for side in sides:
                side.wake(how)
            # SHUT_RD wakes threads that wait for bytes; they reset their client. Threads that wait for a client to
            # read need SHUT_RDWR, but that first sends a FIN to clients that do read: hence second.
            _join(threads, limit_s=0.3)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._threads.add(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # OSError: the peer closed the connection.
        with contextlib.suppress(OSError, _ConnectionClosed), self._tracked(connection) as client:
            try:
                while self._exchange(client):
                    pass
            except _ConnectionClosed as broken:
                if broken.reset:
                    client.reset_on_close()
        with self._lock:
            self._threads.discard(threading.current_thread())

    @contextlib.contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator["_Connection"]:
        """A connection that `stop` can reset until it is closed."""
        side = _Connection(connection)
        with self._lock:
            self._open.add(side)
        try:
            if not self._accepting:
                side.reset_on_close()
                raise _ConnectionClosed
            yield side
        finally:
            with self._lock:
                self._open.discard(side)
            side.close()

    def _exchange(self, client: "_Connection") -> bool:
        """One request and its response. False after the last one of a connection."""
        head = _read_head(client)
        if head is None:
            return False
        with self._lock:
            self.requests += 1
            fault = self._schedule.next(head)
        if (head.get("expect") or "").lower() == "100-continue":
            client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _request_body(head, client)
        if fault and fault.kind == "unavailable":
            self._refuse(head, body, client)
        else:
            self._relay(head, body, fault, client)
        return head.keeps_alive

    def _refuse(self, head: "_Head", body: "_Body", client: "_Connection") -> None:
        for _ in body.pieces:
            pass
        self._count("unavailable")
        response = b"" if head.method == "HEAD" else _SLOW_DOWN
        lines = [b"HTTP/1.1 503 Slow Down", b"Content-Type: application/xml", b"Content-Length: %d" % len(response)]
        client.send(b"\r\n".join([*lines, *head.connection_header, b"", response]))

    def _relay(self, head: "_Head", body: "_Body", fault: Fault | None, client: "_Connection") -> None:
        if fault and fault.kind in ("cut", "reset") and fault.uploading and body.length != 0:
            body, fault = self._with_fault(body, fault, client), None
        with self._tracked(socket.create_connection(self._upstream)) as upstream:
            _send_request(head, body, upstream)
            response = _read_response(upstream)
            body = _response_body(head, response, upstream)
            if fault:
                body = self._with_fault(body, fault, client)
            client.send(response.for_client(body, head.connection_header))
            for data in _encoded(body):
                client.send(data)

    def _with_fault(self, body: "_Body", fault: Fault, client: "_Connection") -> "_Body":
        """The body with a fault."""
        if fault.kind == "corrupt":
            return _Body(body.length, self._corrupted(body, fault.where))
        self._count(fault.kind)
        stall_s = self.plan.stall_s if fault.kind == "stall" else 0.0
        at = int(fault.where * (_UNKNOWN_BYTES if body.length is None else body.length))
        pieces = _interrupted(body.pieces, at, client, stall_s, reset=fault.kind == "reset")
        if body.length == 0:
            next(pieces)  # now: otherwise the head alone would be a complete response
        return _Body(body.length, pieces)

    def _corrupted(self, body: "_Body", where: float) -> Iterator[bytes]:
        """The pieces with one byte flipped; if the length is unknown, a byte of the first piece."""
        at = None if body.length is None else int(where * body.length)
        for piece in body.pieces:
            at = int(where * len(piece)) if at is None else at
            if 0 <= at < len(piece):
                self._count("corrupt")
                piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            at -= len(piece)
            yield piece

    def _count(self, kind: str) -> None:
        with self._lock:
            self.injected[kind] += 1


class _Schedule:
    """Counts attempts of each request, and limits consecutive faults. Not thread-safe."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._attempts: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def next(self, head: "_Head") -> Fault | None:
        """The fault of a new request."""
        path, _, query = head.target.partition("?")
        if self._plan.match not in path:
            return None
        what = f"?{_stable(query)} {head.get('range')}"
        fault = self._draw(head.method, path, what)
        # The inner limit counts the faults of one request, independent of the order of threads. The outer one also
        # limits a client that resumes at the byte it reached; with concurrent readers it depends on their order.
        return self._limited(f"{head.method} {path}", self._limited(f"{head.method} {path}{what}", fault))

    def _draw(self, method: str, path: str, what: str) -> Fault | None:
        request = f"{method} {path}{what}"
        self._attempts[request] += 1
        key = path.removeprefix("/").partition("/")[2]
        fault = draw(self._plan, f"{method} {key}{what}", self._attempts[request] - 1)
        return None if fault and fault.kind == "corrupt" and method != "GET" else fault

    def _limited(self, series: str, fault: Fault | None) -> Fault | None:
        if fault and self._in_a_row[series] < self._plan.in_a_row:
            self._in_a_row[series] += 1
            return fault
        self._in_a_row[series] = 0
        return None


def _stable(query: str) -> str:
    """The query without the parameters that differ between runs."""
    return "&".join(part for part in query.split("&") if not _VARYING.match(part))


class _ConnectionClosed(Exception):
    """The connection to the client ends, by a fault or because a peer closed it."""

    def __init__(self, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class _Connection:
    """A socket and its read buffer."""

    def __init__(self, connection: socket.socket) -> None:
        # Head and body are sent separately: the body must not wait for the ACK of the head.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._reader = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_some(self, limit: int) -> bytes:
        """At least one byte; empty at the end of the connection."""
        return self._reader.read1(limit)

    def read_line(self) -> bytes:
        """One line without its line break."""
        line = self._reader.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _ConnectionClosed
        return line.rstrip(b"\r\n")

    def at_end(self) -> bool:
        """Whether the connection has ended; waits for a byte."""
        return not self._reader.peek(1)

    def wait_for_end(self, limit_s: float) -> None:
        """Waits until the peer closes, or `stop` wakes this thread."""
        self._socket.settimeout(limit_s)
        with contextlib.suppress(TimeoutError):
            self._socket.recv(1)

    def wake(self, how: int) -> None:
        """Wakes the thread that uses this connection, which then resets it."""
        with contextlib.suppress(OSError):
            self.reset_on_close()
            self._socket.shutdown(how)

    def reset_on_close(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        self._reader.close()
        self._socket.close()


@dataclass(frozen=True)
class _Head:
    """The first line and the raw header lines of a request or a response."""

    first: bytes
    lines: tuple[bytes, ...]

    def get(self, name: str) -> str | None:
        """The value of a header, by its name in lower case."""
        for line in self.lines:
            if _name(line) == name:
                return line.partition(b":")[2].strip().decode("latin-1")
        return None

    @property
    def method(self) -> str:
        return self.first.split(b" ")[0].decode("latin-1")

    @property
    def target(self) -> str:
        """Raw path and query, percent-encoded."""
        return self.first.split(b" ")[1].decode("latin-1")

    @property
    def status(self) -> int:
        return int(self.first.split(b" ")[1])

    @property
    def is_chunked(self) -> bool:
        return "chunked" in (self.get("transfer-encoding") or "").lower()

    @property
    def keeps_alive(self) -> bool:
        return self.first.endswith(b"HTTP/1.1") and "close" not in (self.get("connection") or "").lower()

    @property
    def connection_header(self) -> list[bytes]:
        """The Connection header of the response, if this request is the last of its connection."""
        return [] if self.keeps_alive else [b"Connection: close"]

    def wire(self) -> bytes:
        return b"\r\n".join([self.first, *self.lines, b"", b""])

    def for_client(self, body: "_Body", connection_header: list[bytes]) -> bytes:
        """A response's head for the client, with the Connection header of the proxy instead of the server's."""
        lines = [line for line in self.lines if _name(line) not in ("connection", "keep-alive")]
        if body.length is None and not self.is_chunked:
            # The body ends with the connection: chunks let the client distinguish that from a cut.
            lines.append(b"Transfer-Encoding: chunked")
        first = b"HTTP/1.1 " + self.first.partition(b" ")[2]
        return _Head(first, (*lines, *connection_header)).wire()


@dataclass(frozen=True)
class _Body:
    """A decoded body. If its length is unknown (None), it is sent in chunks."""

    length: int | None
    pieces: Iterator[bytes]


def _name(line: bytes) -> str:
    return line.partition(b":")[0].strip().lower().decode("latin-1")


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _join(threads: list[threading.Thread], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _read_head(side: _Connection) -> _Head | None:
    """None at the end of the connection."""
    if side.at_end():
        return None
    first, lines = side.read_line(), []
    while line := side.read_line():
        lines.append(line)
    return _Head(first, tuple(lines))


def _read_response(upstream: _Connection) -> _Head:
    while head := _read_head(upstream):
        if head.status >= 200:  # the proxy has already sent 100 Continue
            return head
    raise _ConnectionClosed


def _request_body(head: _Head, client: _Connection) -> _Body:
    if head.is_chunked:
        return _Body(None, _chunks(client))
    length = int(head.get("content-length") or 0)
    return _Body(length, _exactly(client, length))


def _response_body(request: _Head, response: _Head, upstream: _Connection) -> _Body:
    if request.method == "HEAD" or response.status in (204, 304):
        return _Body(0, iter(()))
    if response.is_chunked:
        return _Body(None, _chunks(upstream))
    if (length := response.get("content-length")) is not None:
        return _Body(int(length), _exactly(upstream, int(length)))
    return _Body(None, _until_closed(upstream))


def _exactly(side: _Connection, count: int) -> Iterator[bytes]:
    while count:
        piece = side.read_some(min(count, _PIECE_BYTES))
        if not piece:
            raise _ConnectionClosed
        count -= len(piece)
        yield piece


def _chunks(side: _Connection) -> Iterator[bytes]:
    """The bytes within the chunks. Trailers are dropped: S3 has its own, inside the body (aws-chunked)."""
    while count := int(side.read_line().partition(b";")[0], 16):
        yield from _exactly(side, count)
        side.read_line()
    while side.read_line():
        pass


def _until_closed(side: _Connection) -> Iterator[bytes]:
    while piece := side.read_some(_PIECE_BYTES):
        yield piece


def _send_request(head: _Head, body: _Body, upstream: _Connection) -> None:
    """Reads the client's whole body even if the server stops reading: its response has the reason."""
    listens = True
    upstream.send(head.wire())
    for data in _encoded(body):
        if listens:
            try:
                upstream.send(data)
            except (BrokenPipeError, ConnectionResetError):
                listens = False


def _encoded(body: _Body) -> Iterator[bytes]:
    """The body as it is sent over the wire."""
    if body.length is not None:
        yield from body.pieces
        return
    for piece in body.pieces:
        if piece:  # an empty chunk would be the last
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _interrupted(
    pieces: Iterator[bytes], count: int, client: _Connection, stall_s: float, reset: bool
) -> Iterator[bytes]:
    """The first `count` bytes; then silence, then the end of the connection."""
    while count and (piece := next(pieces, b"")):
        yield piece[:count]
        count -= min(count, len(piece))
    if stall_s:
        client.wait_for_end(stall_s)
    raise _ConnectionClosed(reset)
