"""The web application of one replica: POST /restore, the page, and endpoints for operators. Knows no Ray.

`?first_frame=1` takes the first frame of an animated picture. Nothing is stored. Memory is bounded: pictures wait in
compressed form, and decoded ones have at most `max_pixels` in total.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
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
from cluster.exporter import Metrics
from cluster.gate import CODE, Application, Limits
from deblur.app.batching import Batcher, most_pixels
from deblur.app.media import ACCEPTED, SUFFIXES, TYPES, NotAcceptable, answer_type
from deblur.data.photographs import Animated, read_photograph
from deblur.data.pictures import TooLarge, open_picture
from deblur.inference.photograph import write_photograph
from deblur.inference.pieces import PieceRunner
from deblur.inference.tiles import advance, restoring

NAME = "The picture"  # in messages to users
STUCK_S = 300.0  # longer than any batch takes
_PAGE = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css")}
_PAGE |= {"/page.js": ("page.js", "text/javascript")}
_HEADERS = {
    # The page connects to this app only, and cannot be framed.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
Work = Callable[[np.ndarray], Awaitable[np.ndarray]]
"""From decoded pixels to those of the response."""
_T = TypeVar("_T")


class Web:
    """A generator behind an ASGI application, `app`."""

    def __init__(
        self,
        generator: nn.Module,
        device: torch.device | str,
        metrics: Metrics,
        *,
        max_pixels: int,
        max_bytes: int,
    ) -> None:
        """`generator` in eval mode, on the device; `metrics` of the table SERVICE are kept up to date.

        max_pixels  of one picture, and of all that are decoded at the same time; each takes about 30 bytes of memory
        max_bytes   of one picture, shown by the page; enforced in front of the app (cluster/gate.py)
        """
        self._runner = PieceRunner(generator, device)
        self._batcher = Batcher(self._runner.run, most_pixels(device))
        self._decoded = WeightedSemaphore(max_pixels)
        self._max_pixels, self._max_bytes = max_pixels, max_bytes
        self._metrics, self._running = metrics, 0
        metrics.pull = self._live
        routes = [Route(path, _file(name, kind)) for path, (name, kind) in _PAGE.items()]
        routes += [Route("/restore", self._restore, methods=["POST"]), Route("/decode", self._decode, methods=["POST"])]
        routes += [Route("/limits", self._limits)]
        routes += [Route("/healthz", self._health), Route("/readyz", self._health)]
        self.app: Application = Starlette(routes=routes)

    def check(self) -> None:
        """Raises RuntimeError if the device has failed or hangs, so that the process has to be restarted."""
        if reason := self._device_error():
            raise RuntimeError(reason)

    def _device_error(self) -> str:
        since = self._batcher.busy_since
        if self._batcher.failure:
            return f"The device failed: {self._batcher.failure}"
        if since and time.monotonic() - since > STUCK_S:
            return f"The device has been computing one batch for more than {STUCK_S:g} s"
        return ""

    def close(self) -> None:
        """Ends the thread that computes."""
        self._batcher.close()

    async def _restore(self, request: Request) -> Response:
        return await self._answer(request, self._restore_pixels)

    async def _decode(self, request: Request) -> Response:
        """The picture as it is, in a format that browsers can show: not all can show HEIC."""
        return await self._answer(request, _unchanged)

    async def _answer(self, request: Request, work: Work) -> Response:
        self._running += 1
        try:
            response = await self._respond(request, work)
        except (HTTPException, InputError, NotAcceptable) as error:
            response = _rejection(error)
        except Exception:
            _log.exception("restoring a picture failed")
            response = _refusal(503, "failed", "The picture could not be processed now; send it again.")
            response.headers["Retry-After"] = str(Limits.retry_after_s)
        finally:
            self._running -= 1
        self._metrics.add("deblur_service_requests_total", 1, str(response.status_code))
        return response

    async def _respond(self, request: Request, work: Work) -> Response:
        _check_type(request.headers.get("content-type", ""))
        data, timing = await request.body(), _ServerTiming()
        given, pixels = await _in_thread(_inspect, data, self._max_pixels)
        async with self._decoded.acquire(pixels):
            timing.end("wait")
            first_frame = request.query_params.get("first_frame") == "1"
            read = partial(read_photograph, data, NAME, self._max_pixels, first_frame=first_frame)
            photograph = await _in_thread(read)
            kind = answer_type(request.headers.get("accept"), given, photograph)
            timing.end("decode")
            restored = await work(photograph.pixels)
            timing.end("restore")
            body = await _in_thread(write_photograph, photograph, restored, NAME, SUFFIXES[kind])
            timing.end("encode")
        for part, seconds in timing.seconds.items():
            self._metrics.add("deblur_service_seconds_total", seconds, part)
        headers = {"Cache-Control": "no-store", "Server-Timing": str(timing), **_HEADERS}
        return Response(body, media_type=kind, headers=headers)

    async def _restore_pixels(self, picture: np.ndarray) -> np.ndarray:
        """The restored picture; its pieces share batches with those of other requests."""
        steps = restoring(picture, self._runner.has_statistics, max_pixels=self._runner.max_pixels)
        step = await _in_thread(advance, steps)
        while isinstance(step, list):
            futures = [asyncio.wrap_future(self._batcher.submit(piece)) for piece in step]
            try:
                step = await _in_thread(advance, steps, await asyncio.gather(*futures))
            except torch.OutOfMemoryError as error:
                step = await _in_thread(advance, steps, error)
        self._metrics.add("deblur_service_pixels_total", picture.shape[0] * picture.shape[1])
        return step

    async def _limits(self, request: Request) -> Response:
        limits = {"bytes": self._max_bytes, "pixels": self._max_pixels, "types": list(ACCEPTED)}
        return JSONResponse(limits, headers=_HEADERS)

    async def _health(self, request: Request) -> Response:
        reason = self._device_error()
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    def _live(self) -> dict[str, float]:
        return {
            "deblur_service_running": self._running,
            "deblur_service_batches_total": self._batcher.batches,
            "deblur_service_pieces_total": self._batcher.pieces,
        }


class WeightedSemaphore:
    """A semaphore of which each holder takes an amount; first come, first served. For one event loop."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()

    @contextlib.asynccontextmanager
    async def acquire(self, amount: int) -> AsyncIterator[None]:
        """Waits until `amount` is free, and holds it for the duration of the context."""
        async with self._turn:
            while self._free < amount:
                self._released.clear()
                await self._released.wait()
            self._free -= amount
        try:
            yield
        finally:
            self._free += amount
            self._released.set()


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """Runs a function in a thread. A caller that is cancelled waits for its end, and holds its semaphore until then."""
    thread = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([thread])
        raise


class _ServerTiming:
    """Seconds of the parts of a request; as text a Server-Timing header, in ms (w3.org/TR/server-timing)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self._since = now - self._since, now

    def __str__(self) -> str:
        return ", ".join(f"{part};dur={1000 * seconds:.1f}" for part, seconds in self.seconds.items())


async def _unchanged(picture: np.ndarray) -> np.ndarray:
    return picture


def _check_type(content_type: str) -> None:
    """Clients do not agree on the names of formats, as image/jpg: the content decides which picture it is."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        # Forms would need a parser, and every client can send a plain file.
        example = "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg'"
        sentence = f"The body is {kind}; send the plain bytes of one of {', '.join(ACCEPTED)}, as in: {example}"
        raise HTTPException(415, sentence, {CODE: "unsupported-type"})


def _inspect(data: bytes, max_pixels: int) -> tuple[str, int]:
    """Media type and number of pixels of a picture, from its header."""
    if not data:
        raise HTTPException(400, "The body is empty; send a picture.", {CODE: "empty"})
    picture = open_picture(data, NAME, max_pixels)
    width, height = picture.size
    if picture.format not in TYPES:
        sentence = f"{NAME} is a {picture.format}; send one of {', '.join(ACCEPTED)}."
        raise HTTPException(415, sentence, {CODE: "unsupported-type"})
    return TYPES[picture.format], width * height


def _rejection(error: HTTPException | InputError | NotAcceptable) -> Response:
    """What is wrong with a request, as a response."""
    if isinstance(error, HTTPException):
        return PlainTextResponse(error.detail, error.status_code, error.headers)
    if isinstance(error, Animated):
        return _refusal(422, "animated", f"{error}, or send it to restore?first_frame=1")
    if isinstance(error, TooLarge):
        return _refusal(413, "too-many-pixels", str(error))
    if isinstance(error, NotAcceptable):
        return _refusal(406, "not-acceptable", str(error))
    return _refusal(400, "undecodable", str(error))


def _refusal(status: int, code: str, sentence: str) -> Response:
    return PlainTextResponse(sentence, status, {CODE: code})


def _file(name: str, kind: str) -> Endpoint:
    data = resources.files("deblur.app").joinpath("page", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache", **_HEADERS})

    return endpoint
