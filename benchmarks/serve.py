"""Speed-up of the service by batching, and overhead of HTTP.

python -m benchmarks.serve --json

Clients wait for each picture before sending the next. Three modes alternate in one process: batched
(deblur.app.batching), one by one, and batched over HTTP (deblur.app.web on a real socket, PNG in and out; clients and
server share the cores). Weights are random, which costs the same as trained ones.
"""

import asyncio
import http.client
import socket
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.command import option, run
from benchmarks.restore import generator_of, picture_of
from benchmarks.timing import alternate, pick_device
from deblur.app.batching import Batcher, most_pixels
from deblur.data import pictures
from deblur.inference.pieces import MAX_PIXELS, Piece, PieceRunner


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = option("paper", "Preset.")
    width: int = option(256, "Of the pictures.")
    height: int = option(256, "Of the pictures.")
    clients: int = option(8, "Concurrent clients.")
    pictures: int = option(4, "Pictures per client and round.")
    rounds: int = option(5, "Rounds.")
    http: bool = option(True, "Also measure HTTP; needs the extra `serve`.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    device = pick_device()
    generator, picture = generator_of(settings.recipe, device), picture_of((settings.width, settings.height))
    with (
        closing(Batcher(PieceRunner(generator, device).run, most_pixels(device))) as batched,
        closing(Batcher(PieceRunner(generator, device).run, max_pixels=1)) as alone,
        _posting(generator, device, picture, settings.http) as post,
    ):
        works = {"batched": partial(_restored, batched, picture), "alone": partial(_restored, alone, picture)}
        if post:
            works["http"] = post
        ways = {name: partial(_at_once, work, settings) for name, work in works.items()}
        for way in ways.values():
            way()  # warms up
        batches, pieces = batched.batches, batched.pieces
        turns = alternate(ways, settings.rounds)
        mean_batch = (batched.pieces - pieces) / (batched.batches - batches)
    median = {name: statistics.median(found) for name, found in turns.items()}
    count = settings.clients * settings.pictures
    figures: dict[str, Any] = {f"{name}_pictures_per_second": count / seconds for name, seconds in median.items()}
    figures["alone_to_batched_seconds"] = median["alone"] / median["batched"]
    figures["alone_to_batched_seconds_of_each_round"] = [
        a / b for a, b in zip(turns["alone"], turns["batched"], strict=True)
    ]
    figures["pictures_per_batch"] = mean_batch
    if post:
        figures["http_to_batched_seconds"] = median["http"] / median["batched"]
    return figures


def _at_once(work: Callable[[], None], settings: Settings) -> None:
    """Runs all clients, one thread each."""

    def client() -> None:
        for _ in range(settings.pictures):
            work()

    threads = [threading.Thread(target=client) for _ in range(settings.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _restored(batcher: Batcher, picture: np.ndarray) -> None:
    assert picture.shape[0] * picture.shape[1] <= MAX_PIXELS  # whole, a single piece
    batcher.submit(Piece(pixels=picture)).result()


@contextmanager
def _posting(
    generator: nn.Module, device: torch.device, picture: np.ndarray, wanted: bool
) -> Iterator[Callable[[], None] | None]:
    """A function that posts the picture to a running server; None unless `wanted`."""
    if not wanted:
        yield None
        return
    import uvicorn

    from cluster.exporter import Metrics
    from deblur.app.metrics import SERVICE
    from deblur.app.web import Web

    web = Web(generator, device, Metrics(SERVICE, {"replica": "0"}), max_pixels=picture.size, max_bytes=1 << 30)
    server = uvicorn.Server(uvicorn.Config(web.app, log_level="critical", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    data, port = pictures.encode_png(picture), listener.getsockname()[1]

    def post() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as opened:
            opened.request("POST", "/restore", data, {"Content-Type": "image/png"})
            answer = opened.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"expected status 200, got {answer.status}: {answer.read().decode()}")
            answer.read()

    try:
        yield post
    finally:
        server.should_exit = True
        thread.join()
        web.close()


if __name__ == "__main__":
    run("serve", __doc__, Settings, measure)
