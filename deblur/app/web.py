"""The app that removes blur, for one replica: POST /restore, the page, and what operators ask. Knows no Ray.

Nothing is stored. Memory is bounded: pictures that wait are compressed, and those that are decoded have at most
`max_pixels` together.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any, TypeVar

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from torch import nn

from cluster.errors import InputError
from cluster.exporter import Numbers
from cluster.gate import Limits
from deblur.app.batching import Batcher, most_pixels
from deblur.app.media import SUFFIXES, TYPES, NotAcceptable, answer_type
from deblur.data.pictures import MAX_PIXELS, TooLarge, open_picture
from deblur.inference.photograph import read_photograph, write_photograph
from deblur.inference.pieces import PieceRunner
from deblur.inference.tiles import advance, restoring

NAME = "The picture"  # in what people are told
STUCK_S = 300.0  # no batch takes so long
_PAGE = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css")}
_PAGE |= {"/page.js": ("page.js", "text/javascript")}
_HEADERS = {
    # The page talks to this app and to nobody else, and nobody frames it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
_T = TypeVar("_T")


class Web:
    """A generator behind an ASGI application, `app`."""

    def __init__(
        self,
        generator: nn.Module,
        device: torch.device | str,
        numbers: Numbers,
        *,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int,
    ) -> None:
        """`generator` in eval mode, on the device; `numbers` of telemetry.SERVICE are kept up to date.

        max_pixels  of one picture, and of all that are decoded at the same time; each takes about 30 bytes of memory
        max_bytes   of one picture, for the page to say; who stands before the app keeps to it (cluster/gate.py)
        """
        self._runner = PieceRunner(generator, device)
        self._batcher = Batcher(self._runner.run, most_pixels(device))
        self._room, self._max_pixels, self._max_bytes = Room(max_pixels), max_pixels, max_bytes
        self._numbers, self._running = numbers, 0
        numbers.live = self._live
        routes = [Route(path, _file(name, kind)) for path, (name, kind) in _PAGE.items()]
        routes += [Route("/restore", self._restore, methods=["POST"]), Route("/limits", self._limits)]
        routes += [Route("/healthz", self._health), Route("/readyz", self._health)]
        self.app = Starlette(routes=routes)

    def check(self) -> None:
        """Raises RuntimeError where the device has failed, or hangs: the process has to be started again."""
        if reason := self._trouble():
            raise RuntimeError(reason)

    def _trouble(self) -> str:
        since = self._batcher.busy_since
        if self._batcher.failure:
            return f"The device failed: {self._batcher.failure}"
        if since and time.monotonic() - since > STUCK_S:
            return f"The device has been busy with one batch for more than {STUCK_S:g} s"
        return ""

    def close(self) -> None:
        """Ends the thread that computes."""
        self._batcher.close()

    async def _restore(self, request: Request) -> Response:
        self._running += 1
        try:
            response = await self._answer(request)
        except (HTTPException, InputError, NotAcceptable) as error:
            response = _sentence(error)
        except Exception:
            _log.exception("a picture could not be restored")
            sentence = "The picture could not be restored now; send it again."
            response = PlainTextResponse(sentence, 503, {"Retry-After": str(Limits.retry_after_s)})
        finally:
            self._running -= 1
        self._numbers.add("deblur_service_requests_total", 1, str(response.status_code))
        return response

    async def _answer(self, request: Request) -> Response:
        _check_type(request.headers.get("content-type", ""))
        data, laps = await request.body(), _Laps()
        given, pixels = await _in_thread(_inspected, data, self._max_pixels)
        async with self._room.taken(pixels):
            laps.end("wait")
            photograph = await _in_thread(read_photograph, data, NAME)
            kind = answer_type(request.headers.get("accept"), given, photograph)
            laps.end("decode")
            restored = await self._restored(photograph.pixels)
            laps.end("restore")
            answer = await _in_thread(write_photograph, photograph, restored, NAME, SUFFIXES[kind])
            laps.end("encode")
        self._numbers.add("deblur_service_pixels_total", pixels)
        for part, seconds in laps.seconds.items():
            self._numbers.add("deblur_service_seconds_total", seconds, part)
        headers = {"Cache-Control": "no-store", "Server-Timing": str(laps), **_HEADERS}
        return Response(answer, media_type=kind, headers=headers)

    async def _restored(self, picture: np.ndarray) -> np.ndarray:
        """The restored picture; its pieces share batches with those of others."""
        steps = restoring(picture, self._runner.has_statistics)
        found = await _in_thread(advance, steps)
        while isinstance(found, list):
            futures = [asyncio.wrap_future(self._batcher.submit(piece)) for piece in found]
            try:
                found = await _in_thread(advance, steps, await asyncio.gather(*futures))
            except torch.OutOfMemoryError as error:
                found = await _in_thread(advance, steps, error)
        return found

    async def _limits(self, request: Request) -> Response:
        limits = {"bytes": self._max_bytes, "pixels": self._max_pixels, "types": list(SUFFIXES)}
        return JSONResponse(limits, headers=_HEADERS)

    async def _health(self, request: Request) -> Response:
        reason = self._trouble()
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    def _live(self) -> dict[str, float]:
        return {
            "deblur_service_running": self._running,
            "deblur_service_batches_total": self._batcher.batches,
            "deblur_service_pieces_total": self._batcher.pieces,
        }


class Room:
    """So much of something, lent in the order in which it is asked for. For one event loop."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._turn = asyncio.Lock()
        self._returned = asyncio.Event()

    @contextlib.asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Waits until `amount` is free, and has it as long as the context."""
        async with self._turn:
            while self._free < amount:
                self._returned.clear()
                await self._returned.wait()
            self._free -= amount
        try:
            yield
        finally:
            self._free += amount
            self._returned.set()


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """What a function returns in a thread; whoever is cancelled meanwhile waits for it, and keeps its room so long."""
    thread = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([thread])
        raise


class _Laps:
    """The seconds that the parts of a request took; as text a Server-Timing header, in ms (w3.org/TR/server-timing)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self._since = now - self._since, now

    def __str__(self) -> str:
        return ", ".join(f"{part};dur={1000 * seconds:.1f}" for part, seconds in self.seconds.items())


def _check_type(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind and kind not in SUFFIXES and kind != "application/octet-stream":
        # A form's body would have to be taken apart; all clients can send a file as it is.
        how = "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg'"
        raise HTTPException(415, f"The body is {kind}; send the bytes of a JPEG, PNG or WebP themselves, as in: {how}")


def _inspected(data: bytes, max_pixels: int) -> tuple[str, int]:
    """Type and pixels of a picture, from its header."""
    if not data:
        raise HTTPException(400, "The body is empty; send the bytes of a JPEG, PNG or WebP.")
    picture = open_picture(data, NAME)
    width, height = picture.size
    if picture.format not in TYPES:
        raise HTTPException(415, f"{NAME} is a {picture.format}; send a JPEG, PNG or WebP.")
    if width * height > max_pixels:
        raise TooLarge(f"{NAME}: {width}x{height} is over the limit of {max_pixels} pixels; scale it down")
    return TYPES[picture.format], width * height


def _sentence(error: HTTPException | InputError | NotAcceptable) -> Response:
    """What was wrong with a request."""
    if isinstance(error, HTTPException):
        return PlainTextResponse(error.detail, error.status_code)
    status = 413 if isinstance(error, TooLarge) else 406 if isinstance(error, NotAcceptable) else 400
    return PlainTextResponse(str(error), status)


def _file(name: str, kind: str) -> Endpoint:
    data = resources.files("deblur.app").joinpath("page", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache", **_HEADERS})

    return endpoint
