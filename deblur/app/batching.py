"""Dynamic batching of pieces of pictures on one device.

A batch is what arrived while the device was busy and has the same kind, oldest first, up to a number of pixels. No
piece waits for others, so batches grow with the load and a single picture is not delayed.

`serve.batch` of Ray Serve (2.58.1) cannot do this, `batch_size_fn` included:

- without a wait (`batch_wait_timeout_s=0`) it makes batches as items arrive, not when the device becomes free: six
  items that arrive while it is busy become six batches; with a wait it delays single pictures;
- it does not group by kind. A `batch_size_fn` that rejects mixed batches puts the odd item at the end of the queue,
  which yields batches of one and loses the order;
- an item larger than `max_batch_size` is an error.

It also needs a replica around it, while this runs without Ray (benchmarks, tests).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from deblur.inference.pieces import MAX_PIXELS, Piece

# On CPUs one piece of 256x256 keeps the cores busy, and larger batches only miss the caches (benchmarks/README.md).
MAX_CPU_PIXELS = 256 * 256
_log = logging.getLogger(__name__)
Run = Callable[[Sequence[Piece]], list[Tensor]]


def most_pixels(device: torch.device | str) -> int:
    """The limit of a batch on that device."""
    return MAX_CPU_PIXELS if torch.device(device).type == "cpu" else MAX_PIXELS


class Batcher:
    """Computes pieces on a device in a thread of its own; thread-safe."""

    def __init__(self, run: Run, max_pixels: int) -> None:
        """`run` gets pieces of one kind with at most `max_pixels` in total; a single piece may have more.

        What `run` raises is the error of each piece of the batch; after torch.OutOfMemoryError pieces are retried one
        by one.
        """
        self._run, self._max_pixels = run, max_pixels
        self._waiting: deque[tuple[Piece, Future[Tensor]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.batches, self.pieces = 0, 0  # computed so far
        self.failure: Exception | None = None
        """The error after which the device is unusable and the process has to be restarted."""
        self.busy_since: float | None = None
        """When the current batch started, by time.monotonic; None if idle."""
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, piece: Piece) -> Future[Tensor]:
        """The result of `run` for a piece. A piece that is cancelled while it waits is not computed."""
        future: Future[Tensor] = Future()
        with self._changed:
            self._waiting.append((piece, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread after the current batch; cancels pieces that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for _, future in self._waiting:
            future.cancel()

    def _work(self) -> None:
        while self._compute_next():
            pass  # a function of its own, so that no batch is kept alive while waiting for the next

    def _compute_next(self) -> bool:
        """Computes a batch; False if there is none because the batcher is closed."""
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
        """Waits for a piece; returns the oldest and others of its kind. Empty when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                first = self._waiting[0][0]
                limit = max(1, self._max_pixels // first.num_pixels)
                batch = [entry for entry in self._waiting if entry[0].kind == first.kind][:limit]
                batched = {id(entry) for entry in batch}
                self._waiting = deque(entry for entry in self._waiting if id(entry) not in batched)
                if batch := [entry for entry in batch if entry[1].set_running_or_notify_cancel()]:
                    return batch

    def _compute(self, batch: list[tuple[Piece, Future[Tensor]]]) -> None:
        if not batch:
            return
        try:
            results = self._run([piece for piece, _ in batch])
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error.with_traceback(None))  # its frames keep the activations alive
                return
            results = None
        if results is None:  # outside of the handler, where the error would keep the memory
            torch.cuda.empty_cache()
            for entry in batch:
                self._compute([entry])
            return
        self.batches += 1
        self.pieces += len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
