"""An HTTP proxy in front of an S3 server that breaks requests by a seeded plan.

    with FaultProxy("http://127.0.0.1:9000", Plan(seed=1, share=0.1)) as proxy:
        ...  # clients with AWS_ENDPOINT_URL=proxy.url

What the plan leaves alone passes unchanged: request line and headers byte for byte, because signatures cover them.
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
# Of a body whose length nobody tells, a fault strikes within so many bytes.
_UNKNOWN_BYTES = 1 << 16
# Parts of a query that differ from run to run and so must not decide about faults.
_FLEETING = re.compile(r"(uploadid|continuation-token|x-amz-[a-z-]*)=", re.IGNORECASE)
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which requests fail, and how."""

    seed: int = 0
    share: float = 0.0
    """Of the requests that match."""
    kinds: tuple[str, ...] = ("cut", "reset", "unavailable")
    """Of KINDS, all equally likely. A "corrupt" that falls on anything but a GET with a body passes unharmed."""
    in_a_row: int = 3
    """After so many faults one after another on one object (method and path) a request passes."""
    stall_s: float = 60.0
    """Silence of a stalled response after its first bytes; then the connection is closed."""
    match: str = ""
    """Only requests whose path, as it is on the wire, contains it."""

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds {sorted(unknown)} are unknown; expected some of {KINDS}")
        if not 0 <= self.share <= 1 or (self.share and not self.kinds):
            raise ValueError(f"share {self.share} of kinds {self.kinds}; expected 0 to 1, and a kind if above 0")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one request."""

    kind: str
    where: float
    """The fraction of the body, in [0, 1), at which it happens."""
    uploading: bool
    """A cut or reset comes while the request's body is read, if there is one."""


def draw(plan: Plan, request: str, asked: int) -> Fault | None:
    """The fault of a request that was made `asked` times before; depends on nothing else."""
    draws = random.Random(f"{plan.seed} {asked} {request}")
    if draws.random() >= plan.share:
        return None
    return Fault(kind=draws.choice(plan.kinds), where=draws.random(), uploading=draws.random() < 0.5)


class FaultProxy:
    """Listens while it is entered as a context manager; `stop` and `start` in between play a server that fails.

    The bucket's name has no say in the faults, so tests may use a new one each time.
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
        self._open: set[_Side] = set()
        self._threads: set[threading.Thread] = set()
        self._accepting: threading.Thread | None = None
        self._listener = _bound(listen, 0)
        self._address = self._listener.getsockname()
        self.url = f"http://{self._address[0]}:{self._address[1]}"

    def __enter__(self) -> "FaultProxy":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._listener.close()

    def start(self) -> None:
        """Listens, always on the same port."""
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
        # Bound but not listening: connections are refused, and no one else is given the port.
        self._listener = _bound(*self._address)
        self._reset_connections()

    def _reset_connections(self) -> None:
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            with self._lock:
                sides, threads = list(self._open), list(self._threads)
            for side in sides:
                side.wake(how)
            # A thread that waits for bytes wakes up from SHUT_RD and resets its client. One that waits for a client
            # to read needs SHUT_RDWR, which says a polite FIN first to a client that does read: hence second.
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
        # OSError: the other end is gone.
        with contextlib.suppress(OSError, _BrokenOffError), self._side(connection) as client:
            try:
                while self._exchange(client):
                    pass
            except _BrokenOffError as broken:
                if broken.reset:
                    client.reset_on_close()
        with self._lock:
            self._threads.discard(threading.current_thread())

    @contextlib.contextmanager
    def _side(self, connection: socket.socket) -> Iterator["_Side"]:
        """One end of a connection, known to `stop` until it is closed."""
        side = _Side(connection)
        with self._lock:
            self._open.add(side)
        try:
            if not self._accepting:
                side.reset_on_close()
                raise _BrokenOffError
            yield side
        finally:
            with self._lock:
                self._open.discard(side)
            side.close()

    def _exchange(self, client: "_Side") -> bool:
        """One request and its answer. False after the last one of a connection."""
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

    def _refuse(self, head: "_Head", body: "_Body", client: "_Side") -> None:
        for _ in body.pieces:
            pass
        self._count("unavailable")
        answer = b"" if head.method == "HEAD" else _SLOW_DOWN
        lines = [b"HTTP/1.1 503 Slow Down", b"Content-Type: application/xml", b"Content-Length: %d" % len(answer)]
        client.send(b"\r\n".join([*lines, *head.farewell, b"", answer]))

    def _relay(self, head: "_Head", body: "_Body", fault: Fault | None, client: "_Side") -> None:
        if fault and fault.kind in ("cut", "reset") and fault.uploading and body.length != 0:
            body, fault = self._broken(body, fault, client), None
        with self._side(socket.create_connection(self._upstream)) as upstream:
            _send_request(head, body, upstream)
            answer = _read_answer(upstream)
            body = _response_body(head, answer, upstream)
            if fault:
                body = self._broken(body, fault, client)
            client.send(answer.passed_on(body, head.farewell))
            for data in _encoded(body):
                client.send(data)

    def _broken(self, body: "_Body", fault: Fault, client: "_Side") -> "_Body":
        """The body with the fault in it."""
        if fault.kind == "corrupt":
            return _Body(body.length, self._corrupted(body, fault.where))
        self._count(fault.kind)
        stall_s = self.plan.stall_s if fault.kind == "stall" else 0.0
        at = int(fault.where * (_UNKNOWN_BYTES if body.length is None else body.length))
        pieces = _broken_off(body.pieces, at, client, stall_s, reset=fault.kind == "reset")
        if body.length == 0:
            next(pieces)  # already now: the head of an answer without a body would be the whole answer
        return _Body(body.length, pieces)

    def _corrupted(self, body: "_Body", where: float) -> Iterator[bytes]:
        """The pieces with one byte flipped; where the length is unknown, a byte of the first."""
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
    """Counts how often each request was made and lets one pass after too many faults. Needs a lock around it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._asked: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def next(self, head: "_Head") -> Fault | None:
        """The fault of the request that arrived just now."""
        path, _, query = head.target.partition("?")
        if self._plan.match not in path:
            return None
        what = f"?{_lasting(query)} {head.get('range')}"
        fault = self._drawn(head.method, path, what)
        # The first limit counts one request's own faults, in any order of threads the same. The second also holds for
        # a client that asks on from the byte it reached; where threads read one object at once, their order matters.
        return self._limited(f"{head.method} {path}", self._limited(f"{head.method} {path}{what}", fault))

    def _drawn(self, method: str, path: str, what: str) -> Fault | None:
        request = f"{method} {path}{what}"
        self._asked[request] += 1
        key = path.removeprefix("/").partition("/")[2]
        fault = draw(self._plan, f"{method} {key}{what}", self._asked[request] - 1)
        return None if fault and fault.kind == "corrupt" and method != "GET" else fault

    def _limited(self, series: str, fault: Fault | None) -> Fault | None:
        if fault and self._in_a_row[series] < self._plan.in_a_row:
            self._in_a_row[series] += 1
            return fault
        self._in_a_row[series] = 0
        return None


def _lasting(query: str) -> str:
    """What is the same in every run."""
    return "&".join(part for part in query.split("&") if not _FLEETING.match(part))


class _BrokenOffError(Exception):
    """The connection to the client ends here: by a fault, or because one side went away."""

    def __init__(self, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class _Side:
    """One end of a connection: a socket and its buffer."""

    def __init__(self, connection: socket.socket) -> None:
        # Head and body are sent apart; the second must not wait for the other end to acknowledge the first.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._reader = connection.makefile("rb")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_some(self, limit: int) -> bytes:
        """What has arrived, at least one byte. Empty at the end of the connection."""
        return self._reader.read1(limit)

    def read_line(self) -> bytes:
        """Without its end."""
        line = self._reader.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _BrokenOffError
        return line.rstrip(b"\r\n")

    def at_end(self) -> bool:
        """Waits for a byte."""
        return not self._reader.peek(1)

    def wait_for_end(self, limit_s: float) -> None:
        """Until the other end closes, or `stop` wakes us."""
        self._socket.settimeout(limit_s)
        with contextlib.suppress(TimeoutError):
            self._socket.recv(1)

    def wake(self, how: int) -> None:
        """Ends what a thread does with this side; it then closes it, with a reset."""
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
    """The first line and the header lines of a request or an answer, as they came."""

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
        """Path and query, percent-encoded as they came."""
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
    def farewell(self) -> list[bytes]:
        """The header line that an answer to this request needs if it is the last of its connection."""
        return [] if self.keeps_alive else [b"Connection: close"]

    def wire(self) -> bytes:
        return b"\r\n".join([self.first, *self.lines, b"", b""])

    def passed_on(self, body: "_Body", farewell: list[bytes]) -> bytes:
        """An answer's head for the client; whether its connection stays open is between the client and the proxy."""
        lines = [line for line in self.lines if _name(line) not in ("connection", "keep-alive")]
        if body.length is None and not self.is_chunked:
            # It ends with the connection. Chunks let the client tell that end from a cut.
            lines.append(b"Transfer-Encoding: chunked")
        first = b"HTTP/1.1 " + self.first.partition(b" ")[2]
        return _Head(first, (*lines, *farewell)).wire()


@dataclass(frozen=True)
class _Body:
    """The bytes of a body, free of chunks. Length None: it is unknown and the body is passed on in chunks."""

    length: int | None
    pieces: Iterator[bytes]


def _name(line: bytes) -> str:
    return line.partition(b":")[0].strip().lower().decode("latin-1")


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _join(threads: list[threading.Thread], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _read_head(side: _Side) -> _Head | None:
    """None if the connection ends instead."""
    if side.at_end():
        return None
    first, lines = side.read_line(), []
    while line := side.read_line():
        lines.append(line)
    return _Head(first, tuple(lines))


def _read_answer(upstream: _Side) -> _Head:
    while head := _read_head(upstream):
        if head.status >= 200:  # a 100 says only what the client was told already
            return head
    raise _BrokenOffError


def _request_body(head: _Head, client: _Side) -> _Body:
    if head.is_chunked:
        return _Body(None, _chunks(client))
    length = int(head.get("content-length") or 0)
    return _Body(length, _exactly(client, length))


def _response_body(request: _Head, answer: _Head, upstream: _Side) -> _Body:
    if request.method == "HEAD" or answer.status in (204, 304):
        return _Body(0, iter(()))
    if answer.is_chunked:
        return _Body(None, _chunks(upstream))
    if (length := answer.get("content-length")) is not None:
        return _Body(int(length), _exactly(upstream, int(length)))
    return _Body(None, _to_the_end(upstream))


def _exactly(side: _Side, count: int) -> Iterator[bytes]:
    while count:
        piece = side.read_some(min(count, _PIECE_BYTES))
        if not piece:
            raise _BrokenOffError
        count -= len(piece)
        yield piece


def _chunks(side: _Side) -> Iterator[bytes]:
    """The bytes within the chunks. Trailers are dropped: S3 has its own, inside the body (aws-chunked)."""
    while count := int(side.read_line().partition(b";")[0], 16):
        yield from _exactly(side, count)
        side.read_line()
    while side.read_line():
        pass


def _to_the_end(side: _Side) -> Iterator[bytes]:
    while piece := side.read_some(_PIECE_BYTES):
        yield piece


def _send_request(head: _Head, body: _Body, upstream: _Side) -> None:
    """Reads the client's body to its end even if the server stops to listen: its answer tells why."""
    listens = True
    upstream.send(head.wire())
    for data in _encoded(body):
        if listens:
            try:
                upstream.send(data)
            except (BrokenPipeError, ConnectionResetError):
                listens = False


def _encoded(body: _Body) -> Iterator[bytes]:
    """The body as it is sent."""
    if body.length is not None:
        yield from body.pieces
        return
    for piece in body.pieces:
        if piece:  # an empty chunk would be the last
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _broken_off(pieces: Iterator[bytes], count: int, client: _Side, stall_s: float, reset: bool) -> Iterator[bytes]:
    """The first `count` bytes; then silence, then the end of the connection."""
    while count and (piece := next(pieces, b"")):
        yield piece[:count]
        count -= min(count, len(piece))
    if stall_s:
        client.wait_for_end(stall_s)
    raise _BrokenOffError(reset)
