"""What stands before an HTTP service: limits on what clients send, and an answer whatever happens behind it.

Ray Serve's proxies take a body of any size at any speed, hand it on while it comes, so that a slow client keeps a
replica's slot, and answer 500 when a replica dies. Here a body is taken whole before anybody is bothered with it, and
an answer before the client sees any of it, within limits of bytes and seconds; a request that is lost behind is
answered with 503 and Retry-After, which clients may act on.

In a proxy it runs where the environment says RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cluster.gate:middlewares.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, fields
from typing import Any

from cluster.errors import InputError

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
LINGER_S = 5.0  # how long a client that was refused may go on sending: it reads the answer when it is done
OF_THE_PROXY = ("/-/healthz", "/-/routes")  # it answers these itself
# By these a client would tell Serve's proxy how to treat it.
_ORDERS = {
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
    """Each is a variable of the environment, too: GATE_BODY_BYTES and so on."""

    body_bytes: int = 32 << 20
    """Of one request."""
    held_bytes: int = 512 << 20
    """Of all bodies that are being sent or wait for their answers, and of answers that are being read."""
    upload_s: float = 60.0
    """From the headers to the last byte of the body."""
    answer_s: float = 120.0
    """From the last byte of the body to the answer."""
    download_s: float = 300.0
    """From the first byte of the answer to its last; then the connection is cut."""
    retry_after_s: int = 5
    """What a client that comes too early is told to wait."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"{_variable(field.name)} is {getattr(self, field.name)}; it must be above 0")
        if self.held_bytes < self.body_bytes:
            raise InputError(f"{_variable('held_bytes')} is {self.held_bytes}, less than one body of {self.body_bytes}")

    @classmethod
    def of_environment(cls) -> "Limits":
        """Raises InputError naming the variable."""
        given = {}
        for field in fields(cls):
            if text := os.environ.get(_variable(field.name)):
                try:
                    given[field.name] = type(field.default)(text)
                except ValueError as error:
                    raise InputError(f"{_variable(field.name)} is {text}; it must be a number") from error
        return cls(**given)


def _variable(name: str) -> str:
    return f"GATE_{name.upper()}"


def middlewares() -> list[Any]:
    """What Ray Serve puts before its proxies."""
    from starlette.middleware import Middleware

    return [Middleware(Gate, limits=Limits.of_environment())]


class _Refused(Exception):
    def __init__(self, status: int, sentence: str, *, is_sending: bool = False) -> None:
        """`is_sending`: the client may not have sent all of its body yet."""
        super().__init__(sentence)
        self.status, self.is_sending = status, is_sending


class Gate:
    """An ASGI middleware (asgi.readthedocs.io). For one event loop."""

    def __init__(self, app: Application, limits: Limits) -> None:
        self._app, self.limits = app, limits
        self.held_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OF_THE_PROXY:
            await self._app(scope, receive, send)
            return
        held = _Held(self)
        try:
            body = await self._body(scope, receive, held)
            if body is None:
                return
            answer = await self._answer(scope, body, receive)
            del body  # from here on the answer is what is held
            held.count(sum(len(message.get("body", b"")) for message in answer))
            async with asyncio.timeout(self.limits.download_s):
                await _send_in_chunks(answer, send)
        except _Refused as refused:
            await self._refuse(refused, receive, send)
        finally:
            held.release()

    async def _body(self, scope: Message, receive: Receive, held: "_Held") -> bytes | None:
        """All of it, or None where the client left meanwhile."""
        most, announced = self.limits.body_bytes, _announced_bytes(scope)
        if announced > most:
            raise _Refused(413, f"The body has {announced} bytes; at most {most} are taken.", is_sending=True)
        held.reserve(announced)
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.upload_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise _Refused(413, f"The body has more than {most} bytes.", is_sending=True)
                    held.reserve(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            sentence = f"The body did not come within {self.limits.upload_s:g} s; send it over a faster connection."
            raise _Refused(408, sentence) from None

    async def _answer(self, scope: Message, body: bytes, receive: Receive) -> list[Message]:
        """All of the service's answer."""
        answer: list[Message] = []

        async def collect(message: Message) -> None:
            answer.append(message)

        headers = [(name, value) for name, value in scope["headers"] if _is_harmless(name, value)]
        try:
            async with asyncio.timeout(self.limits.answer_s) as limit:
                await self._app({**scope, "headers": headers}, _replayed(body, receive), collect)
        except Exception:
            if not limit.expired():
                _log.exception("%s %s failed", scope["method"], scope["path"])
        if not answer or answer[-1]["type"] != "http.response.body" or answer[-1].get("more_body", False):
            reason = f"gave no answer within {self.limits.answer_s:g} s" if limit.expired() else "lost this request"
            raise _Refused(503, f"The service {reason}; send it again.")
        return answer

    async def _refuse(self, refused: _Refused, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        if refused.status == 503:
            headers.append((b"retry-after", str(self.limits.retry_after_s).encode()))
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": str(refused).encode(), "more_body": True})
        if refused.is_sending:
            await _linger(receive)
        await send({"type": "http.response.body", "body": b""})


async def _linger(receive: Receive) -> None:
    """Takes what a client still sends: a connection closed under its hands would lose it the answer."""
    try:
        async with asyncio.timeout(LINGER_S):
            while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass


class _Held:
    """What one request holds of the gate's bytes."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._bytes = gate, 0

    def reserve(self, size: int) -> None:
        """Holds `size` bytes where it held fewer. Raises _Refused where the gate has no more."""
        if self._gate.held_bytes + max(0, size - self._bytes) > self._gate.limits.held_bytes:
            raise _Refused(503, "Too many requests are waiting; send it again in a moment.", is_sending=True)
        self.count(max(size, self._bytes))

    def count(self, size: int) -> None:
        """Holds `size` bytes, come what may: they are there already."""
        self._gate.held_bytes += size - self._bytes
        self._bytes = size

    def release(self) -> None:
        self.count(0)


async def _send_in_chunks(answer: list[Message], send: Send) -> None:
    """So that a server that waits for its client to read does so before it has copied all of the body."""
    for message in answer:
        body = message.get("body", b"")
        *parts, last = [body[start : start + _CHUNK] for start in range(0, len(body), _CHUNK)] or [b""]
        for part in parts:
            await send({"type": message["type"], "body": part, "more_body": True})
        await send({**message, "body": last} if body else message)


def _announced_bytes(scope: Message) -> int:
    """What the headers say; 0 where a body comes in chunks."""
    headers = dict(scope["headers"])
    return 0 if b"transfer-encoding" in headers else int(headers.get(b"content-length", b"0"))


def _is_harmless(name: bytes, value: bytes) -> bool:
    """Whether Serve's proxy may see a header; of one that is not ASCII it would keep the request for ever."""
    return value.isascii() and name.replace(b"_", b"-") not in _ORDERS


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever comes: the news that the client has left."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def next_message() -> Message:
        return next(messages, None) or await receive()

    return next_message
