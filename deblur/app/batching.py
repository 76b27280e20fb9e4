"""Pieces of pictures that are restored at the same time, in batches on one device.

Nothing waits for company: what came while the device was busy, and is of one kind, goes together. So a picture that
comes alone is not delayed, and the batches grow with the load.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from deblur.inference.pieces import Piece
from deblur.inference.tiles import MAX_PIXELS

# On CPUs a piece of 256x256 keeps the cores busy, and more of them in a batch only leave the caches
# (benchmarks/README.md).
MAX_CPU_PIXELS = 256 * 256
_log = logging.getLogger(__name__)
Run = Callable[[Sequence[Piece]], list[Tensor]]


def most_pixels(device: torch.device | str) -> int:
    """Of a batch on that device."""
    return MAX_CPU_PIXELS if torch.device(device).type == "cpu" else MAX_PIXELS


class Batcher:
    """Gives pieces to a device, from any thread."""

    def __init__(self, run: Run, max_pixels: int) -> None:
        """`run` is called in a thread of the batcher's, with pieces of one kind and of `max_pixels` together at most.

        A single piece may have more. What `run` raises comes out of each piece of the batch; but out of memory, pieces
        are tried one by one.
        """
        self._run, self._max_pixels = run, max_pixels
        self._waiting: deque[tuple[Piece, Future[Tensor]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.batches, self.pieces = 0, 0  # computed so far
        self.failure: Exception | None = None
        """The error after which the device is of no use; the process has to be started again."""
        self.busy_since: float | None = None
        """When the batch that is computed now was begun, by time.monotonic."""
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, piece: Piece) -> Future[Tensor]:
        """What `run` makes of a piece, later. A cancelled piece that still waits is not computed."""
        future: Future[Tensor] = Future()
        with self._changed:
            self._waiting.append((piece, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread after the batch that it is at; pieces that wait are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for _, future in self._waiting:
            future.cancel()

    def _work(self) -> None:
        while self._compute_next():
            pass  # in a function of its own, so that nothing of a batch is kept while the next is waited for

    def _compute_next(self) -> bool:
        """Computes a batch; False at the end."""
        batch = self._next()
        self.busy_since = time.monotonic()
        try:
            self._compute(batch)
        except Exception as error:
            if isinstance(error, torch.AcceleratorError):
                self.failure = error
            _log.exception("a batch of %d pieces failed", len(batch))
            for _, future in batch:
                if not future.done():
                    future.set_exception(error.with_traceback(None))
        self.busy_since = None
        return bool(batch)

    def _next(self) -> list[tuple[Piece, Future[Tensor]]]:
        """The piece that has waited longest, and those of its kind; waits for one. Empty when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                first = self._waiting[0][0]
                room = max(1, self._max_pixels // first.num_pixels)
                batch = [entry for entry in self._waiting if entry[0].kind == first.kind][:room]
                taken = {id(entry) for entry in batch}
                self._waiting = deque(entry for entry in self._waiting if id(entry) not in taken)
                if batch := [entry for entry in batch if entry[1].set_running_or_notify_cancel()]:
                    return batch

    def _compute(self, batch: list[tuple[Piece, Future[Tensor]]]) -> None:
        if not batch:
            return
        try:
            results = self._run([piece for piece, _ in batch])
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error.with_traceback(None))  # its frames hold the activations alive
                return
            results = None
        if results is None:  # after the handler: the error holds the memory
            torch.cuda.empty_cache()
            for entry in batch:
                self._compute([entry])
            return
        self.batches += 1
        self.pieces += len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
