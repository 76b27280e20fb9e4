"""What stands before an HTTP service: limits on what clients send, and an answer whatever happens behind it.

Ray Serve's proxies take a body of any size at any speed, hand it on while it comes, so that a slow client keeps a
replica's slot, and answer 500 when a replica dies. Here a body is taken whole before anybody is bothered with it,
within limits of bytes and seconds; and a request that is lost behind is answered with 503 and Retry-After, which
clients may act on.

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
SERVES_OWN = "/-/"  # health and routes of the proxy itself
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
    """Of all that are being sent or wait for their answers."""
    upload_s: float = 60.0
    """From the headers to the last byte of the body."""
    answer_s: float = 120.0
    """From the last byte of the body to the answer."""
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
        self._app, self._limits = app, limits
        self._held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SERVES_OWN):
            await self._app(scope, receive, send)
            return
        reserved = 0
        try:
            reserved = self._reserve(_expected_bytes(scope, self._limits.body_bytes))
            body = await self._body(receive)
            if body is not None:
                await self._answer(scope, body, receive, send)
        except _Refused as refused:
            await self._refuse(refused, receive, send)
        finally:
            self._held -= reserved

    def _reserve(self, size: int) -> int:
        if size > self._limits.body_bytes:
            sentence = f"The body has {size} bytes; at most {self._limits.body_bytes} are taken."
            raise _Refused(413, sentence, is_sending=True)
        if self._held + size > self._limits.held_bytes:
            raise _Refused(503, "Too many requests are waiting; send it again in a moment.", is_sending=True)
        self._held += size
        return size

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it, or None where the client left meanwhile."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.upload_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._limits.body_bytes:
                        raise _Refused(413, f"The body has more than {self._limits.body_bytes} bytes.", is_sending=True)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            sentence = f"The body did not come within {self._limits.upload_s:g} s; send it over a faster connection."
            raise _Refused(408, sentence) from None

    async def _answer(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        """The service's answer; where it gives none, a request to try again."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self._limits.answer_s) as limit:
                await self._app(scope, _replayed(body, receive), watched)
        except Exception:
            if not limit.expired():
                _log.exception("%s %s failed", scope["method"], scope["path"])
        if not started:
            reason = f"gave no answer within {self._limits.answer_s:g} s" if limit.expired() else "lost this request"
            raise _Refused(503, f"The service {reason}; send it again.")

    async def _refuse(self, refused: _Refused, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        if refused.status == 503:
            headers.append((b"retry-after", str(self._limits.retry_after_s).encode()))
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


def _expected_bytes(scope: Message, unknown: int) -> int:
    """What the headers announce; `unknown` where a body comes in chunks."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return unknown
    return int(headers.get(b"content-length", b"0"))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever comes: the news that the client has left."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def next_message() -> Message:
        return next(messages, None) or await receive()

    return next_message
