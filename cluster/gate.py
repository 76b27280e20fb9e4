"""ASGI middleware for Ray Serve's proxies: request size and time limits, response buffering, 503 if a replica dies.

What Serve itself (2.58.1) cannot do, and this can:

- limit the bytes of a body, and those of all bodies and responses in the proxy: HTTPOptions has no limit on size;
- receive a body before a replica is chosen: the proxy forwards it as it arrives, so a slow upload occupies one of the
  replica's `max_ongoing_requests`. Middleware of an ingress deployment has the same problem: it runs in the replica;
- time out uploads, processing and downloads separately: `request_timeout_s` is end to end and answers 408 to all;
- answer 503 with Retry-After, which clients may retry, when a replica dies: the proxy answers 500, or truncates a
  response that has begun;
- ignore X-Request-Timeout-Seconds and other headers that change how the proxy treats a request.

Queues are Serve's own (`max_queued_requests`, `BackpressureConfig`). A proxy loads this if its environment has
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cluster.gate:middlewares.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, fields
from typing import Any

from cluster.errors import InputError

CODE = "Error-Code"  # the header that says in one word what the sentence of a refusal says
LINGER_S = 5.0  # how long a rejected client may keep sending: most read the response only afterwards
PROXY_PATHS = ("/-/healthz", "/-/routes")  # answered by the proxy itself
# Headers with which a client would control Serve's proxy.
_CONTROL_HEADERS = {
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"serve-multiplexed-model-id",
    b"x-session-id",
}
_CHUNK = 1 << 16
_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Each is set by an environment variable: GATE_BODY_BYTES and so on."""

    body_bytes: int = 32 << 20
    """Of one request body."""
    held_bytes: int = 512 << 20
    """Of all bodies that are being received or processed, and of responses that are being sent."""
    upload_s: float = 60.0
    """From the headers to the last byte of the body."""
    answer_s: float = 120.0
    """From the last byte of the body to the complete response of the service."""
    download_s: float = 300.0
    """From the first byte of the response to its last; then the connection is closed."""
    retry_after_s: int = 5
    """Retry-After of 503 responses."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"{_variable(field.name)} is {getattr(self, field.name)}; it must be greater than 0")
        if self.held_bytes < self.body_bytes:
            raise InputError(
                f"{_variable('held_bytes')} is {self.held_bytes}; it must be at least {_variable('body_bytes')}, "
                f"{self.body_bytes}"
            )

    @classmethod
    def of_environment(cls) -> "Limits":
        """Raises InputError naming the variable."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            if text := os.environ.get(_variable(field.name)):
                try:
                    given[field.name] = int(text) if isinstance(field.default, int) else float(text)
                except ValueError as error:
                    raise InputError(f"{_variable(field.name)} is {text!r}; it must be a number") from error
        return cls(**given)


def _variable(name: str) -> str:
    return f"GATE_{name.upper()}"


def middlewares() -> list[Any]:
    """Called by Ray Serve when it starts a proxy."""
    from starlette.middleware import Middleware

    return [Middleware(Gate, limits=Limits.of_environment())]


class _Rejected(Exception):
    def __init__(self, status: int, code: str, sentence: str, *, is_sending: bool = False) -> None:
        """`is_sending`: the client may still be sending its body."""
        super().__init__(sentence)
        self.status, self.code, self.is_sending = status, code, is_sending


class Gate:
    """An ASGI middleware (asgi.readthedocs.io), for one event loop."""

    def __init__(self, app: Application, limits: Limits) -> None:
        self._app, self.limits = app, limits
        self.held_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROXY_PATHS:
            await self._app(scope, receive, send)
            return
        held = _HeldBytes(self)
        try:
            body = await self._receive_body(scope, receive, held)
            if body is None:
                return
            response = await self._call_app(scope, body, receive)
            del body  # from here on the response is what is held
            held.set(sum(len(message.get("body", b"")) for message in response))
            async with asyncio.timeout(self.limits.download_s):
                await _send_in_chunks(response, send)
        except _Rejected as rejected:
            await self._reject(rejected, receive, send)
        finally:
            held.set(0)

    async def _receive_body(self, scope: Message, receive: Receive, held: "_HeldBytes") -> bytes | None:
        """The complete body, or None if the client disconnects."""
        limit, content_length = self.limits.body_bytes, _content_length(scope)
        if content_length > limit:
            sentence = f"The body has {content_length} bytes; the limit is {limit}."
            raise _Rejected(413, "too-many-bytes", sentence, is_sending=True)
        held.reserve(content_length)
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.upload_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        sentence = f"The body has more than {limit} bytes."
                        raise _Rejected(413, "too-many-bytes", sentence, is_sending=True)
                    held.reserve(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            sentence = f"The upload took longer than {self.limits.upload_s:g} s; use a faster connection."
            raise _Rejected(408, "slow-upload", sentence) from None

    async def _call_app(self, scope: Message, body: bytes, receive: Receive) -> list[Message]:
        """The complete response of the service."""
        response: list[Message] = []

        async def collect(message: Message) -> None:
            response.append(message)

        headers = [(name, value) for name, value in scope["headers"] if _is_forwarded(name, value)]
        try:
            async with asyncio.timeout(self.limits.answer_s) as limit:
                await self._app({**scope, "headers": headers}, _replay(body, receive), collect)
        except Exception:
            if not limit.expired():
                _log.exception("%s %s failed", scope["method"], scope["path"])
        if not response or response[-1]["type"] != "http.response.body" or response[-1].get("more_body", False):
            reason = f"did not respond within {self.limits.answer_s:g} s" if limit.expired() else "lost this request"
            raise _Rejected(503, "failed", f"The service {reason}; send it again.")
        return response

    async def _reject(self, rejected: _Rejected, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        headers.append((CODE.lower().encode(), rejected.code.encode()))
        if rejected.status == 503:
            headers.append((b"retry-after", str(self.limits.retry_after_s).encode()))
        await send({"type": "http.response.start", "status": rejected.status, "headers": headers})
        await send({"type": "http.response.body", "body": str(rejected).encode(), "more_body": True})
        if rejected.is_sending:
            await _linger(receive)
        await send({"type": "http.response.body", "body": b""})


async def _linger(receive: Receive) -> None:
    """Reads what the client still sends: if the connection were closed earlier, it would not see the response."""
    try:
        async with asyncio.timeout(LINGER_S):
            while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


class _HeldBytes:
    """The part of the gate's `held_bytes` that belongs to one request."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._bytes = gate, 0

    def reserve(self, size: int) -> None:
        """Holds at least `size` bytes. Raises _Rejected above the gate's limit."""
        if self._gate.held_bytes + max(0, size - self._bytes) > self._gate.limits.held_bytes:
            sentence = "Too many requests are waiting; send it again in a moment."
            raise _Rejected(503, "busy", sentence, is_sending=True)
        self.set(max(size, self._bytes))

    def set(self, size: int) -> None:
        """Holds exactly `size` bytes, whatever the limit: they are in memory already."""
        self._gate.held_bytes += size - self._bytes
        self._bytes = size


async def _send_in_chunks(response: list[Message], send: Send) -> None:
    """In small parts, so that the server waits for a slow client before it has copied the whole body."""
    for message in response:
        body = message.get("body", b"")
        *parts, last = [body[start : start + _CHUNK] for start in range(0, len(body), _CHUNK)] or [b""]
        for part in parts:
            await send({"type": message["type"], "body": part, "more_body": True})
        await send({**message, "body": last} if body else message)


def _content_length(scope: Message) -> int:
    """Of the headers; 0 for a chunked body."""
    headers = dict(scope["headers"])
    return 0 if b"transfer-encoding" in headers else int(headers.get(b"content-length", b"0"))


def _is_forwarded(name: bytes, value: bytes) -> bool:
    """Whether Serve's proxy gets a header; one that is not ASCII would make it keep the request forever."""
    return value.isascii() and name.replace(b"_", b"-") not in _CONTROL_HEADERS


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receives the body once, then what follows: the disconnect of the client."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def next_message() -> Message:
        return next(messages, None) or await receive()

    return next_message
