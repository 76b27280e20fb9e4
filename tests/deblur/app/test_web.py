"""The app of one replica: memory limits, and devices that fail, hang or run out of memory."""

import asyncio
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPMessage

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from cluster.exporter import Metrics
from deblur.app.metrics import SERVICE
from deblur.app.web import Web, WeightedSemaphore, _in_thread
from tests.datasets import picture
from tests.deblur.data.test_formats import UPRIGHT, iphone_heic
from tests.servers import ask, listening


class Fragile(nn.Module):
    """Inverts pictures; fails with `error`."""

    error: Exception | None = None

    def forward(self, pictures: Tensor) -> Tensor:
        if self.error:
            raise self.error
        return -pictures

    def __deepcopy__(self, memo: object) -> "Fragile":
        return self


@contextmanager
def client(generator: nn.Module, max_pixels: int = 1_000_000) -> Iterator[tuple[int, Web]]:
    web = Web(generator, "cpu", Metrics(SERVICE, {"replica": "1"}), max_pixels=max_pixels, max_bytes=1_000_000)
    with listening(web.app) as port:
        yield port, web
    web.close()


def restore(port: int, pixels: np.ndarray) -> tuple[int, bytes, HTTPMessage]:
    return ask(port, "POST", "/restore", png(pixels))


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_picture_is_decoded_without_restoring_it_for_browsers_that_cannot() -> None:
    data = iphone_heic()
    with client(Fragile()) as (port, _):
        status, body, headers = ask(port, "POST", "/decode", data)
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert np.abs(np.asarray(PIL.Image.open(io.BytesIO(body))).astype(int) - UPRIGHT).mean() < 5


def test_a_picture_goes_through_the_generator() -> None:
    pixels = picture(0, 20, 30)
    with client(Fragile()) as (port, _):
        _, body, _ = restore(port, pixels)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(body))), 255 - pixels)


def test_picture_above_the_limit_of_the_replica_is_rejected() -> None:
    with client(Fragile(), max_pixels=599) as (port, _):
        status, sentence, headers = restore(port, picture(0, 20, 30))
    assert (status, headers["error-code"]) == (413, "too-many-pixels")
    assert b"30x20" in sentence
    assert b"599 pixels" in sentence


def test_unexpected_error_is_answered_with_retry_after_and_the_next_picture_is_restored() -> None:
    generator = Fragile()
    with client(generator) as (port, web):
        generator.error = RuntimeError("a crash")
        status, sentence, headers = restore(port, picture(0, 20, 30))
        assert (status, headers["retry-after"]) == (503, "5")
        assert b"a crash" not in sentence
        web.check()
        generator.error = None
        assert restore(port, picture(0, 20, 30))[0] == 200


def test_failed_device_makes_the_replica_unready_and_unhealthy() -> None:
    generator = Fragile()
    with client(generator) as (port, web):
        assert ask(port, "GET", "/readyz")[0] == 200
        generator.error = torch.AcceleratorError("an illegal memory access was encountered")
        assert restore(port, picture(0, 20, 30))[0] == 503
        assert (ask(port, "GET", "/readyz")[0], ask(port, "GET", "/healthz")[0]) == (503, 503)
        with pytest.raises(RuntimeError, match="an illegal memory access"):
            web.check()


def test_hanging_device_makes_the_replica_unhealthy_and_a_busy_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    go, started = threading.Event(), threading.Event()

    class Hanging(Fragile):
        def forward(self, pictures: Tensor) -> Tensor:
            started.set()
            go.wait(20)
            return -pictures

    with client(Hanging()) as (port, web):
        asking = threading.Thread(target=restore, args=(port, picture(0, 20, 30)))
        asking.start()
        started.wait(20)
        web.check()
        monkeypatch.setattr("deblur.app.web.STUCK_S", 0.0)
        with pytest.raises(RuntimeError, match="one batch for more than 0 s"):
            web.check()
        go.set()
        asking.join()
        web.check()


def test_picture_that_does_not_fit_into_gpu_memory_is_restored_in_tiles() -> None:
    class Small(Fragile):
        def forward(self, pictures: Tensor) -> Tensor:
            if pictures[0, 0].numel() > 1_100_000:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return -pictures

    pixels = picture(0, 1100, 1300)
    with client(Small(), max_pixels=2_000_000) as (port, _):
        _, body, _ = restore(port, pixels)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(io.BytesIO(body))), 255 - pixels)


def test_page_loads_nothing_from_other_origins() -> None:
    with client(Fragile()) as (port, _):
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            _, body, headers = ask(port, "GET", path)
            assert headers["content-type"].startswith(kind)
            assert "default-src 'none'" in headers["content-security-policy"]
            assert not re.findall(rb"(?:src=|<link[^>]*href=|url\(|fetch\(|import )\W*(?:https?:)?//", body)


def test_cancelled_request_holds_the_semaphore_until_its_thread_ends() -> None:
    async def scenario() -> list[str]:
        semaphore, events, go = WeightedSemaphore(10), [], threading.Event()

        def decode() -> None:
            go.wait(20)
            events.append("decoded")

        async def request() -> None:
            async with semaphore.acquire(10):
                await _in_thread(decode)

        async def next_request() -> None:
            async with semaphore.acquire(10):
                events.append("next")

        first = asyncio.create_task(request())
        await asyncio.sleep(0.05)
        first.cancel()
        second = asyncio.create_task(next_request())
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.gather(first, second, return_exceptions=True)
        assert first.cancelled()
        return events

    assert asyncio.run(scenario()) == ["decoded", "next"]


def test_semaphore_is_fair_and_never_exceeded() -> None:
    async def scenario() -> list[tuple[str, int]]:
        semaphore, events, taken = WeightedSemaphore(10), [], 0

        async def use(name: str, amount: int, seconds: float) -> None:
            nonlocal taken
            async with semaphore.acquire(amount):
                taken += amount
                events.append((name, taken))
                await asyncio.sleep(seconds)
                taken -= amount

        # The large one is not overtaken by small ones that would fit.
        async with asyncio.TaskGroup() as group:
            for name, amount, seconds in (("a", 6, 0.1), ("b", 3, 0.05), ("large", 10, 0.01), ("c", 1, 0.01)):
                group.create_task(use(name, amount, seconds))
                await asyncio.sleep(0)
        return events

    events = asyncio.run(scenario())
    assert [name for name, _ in events] == ["a", "b", "large", "c"]
    assert max(taken for _, taken in events) == 10


def test_semaphore_is_released_by_cancelled_waiters_and_holders() -> None:
    async def scenario() -> None:
        semaphore = WeightedSemaphore(10)

        async def use(seconds: float) -> None:
            async with semaphore.acquire(10):
                await asyncio.sleep(seconds)

        working, waiting = asyncio.create_task(use(60)), asyncio.create_task(use(60))
        await asyncio.sleep(0.01)
        waiting.cancel()
        working.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
        await asyncio.wait_for(use(0), 5)

    asyncio.run(scenario())
