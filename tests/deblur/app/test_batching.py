"""Dynamic batching: which pieces share a batch, and errors, cancellation and lack of memory."""

import gc
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from torch import Tensor

from deblur.app.batching import Batcher, most_pixels
from deblur.inference.pieces import MAX_PIXELS, Piece


def piece(value: int, height: int = 4, width: int = 4, measured: bool = False) -> Piece:
    return Piece(pixels=np.full((height, width, 3), value, np.uint8), measured=measured)


class Device:
    """The result of a piece is its value; blocks in the first batch until `go` is set."""

    def __init__(self, at_once: int = 99) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.at_once = at_once

    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        values = [int(each.pixels[0, 0, 0]) for each in pieces]
        self.started.set()
        self.go.wait(10)
        if 13 in values:
            raise ValueError("a bad piece")
        if len(values) > self.at_once:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert len({each.kind for each in pieces}) == 1
        self.batches.append(values)
        return [torch.tensor(value) for value in values]


def submitted_while_busy(device: Device, batcher: Batcher, pieces: list[Piece]) -> list[int | Exception]:
    """Results or errors of a first piece, 0, and of those submitted while the device was busy with it."""
    futures = [batcher.submit(piece(0))]
    device.started.wait(10)
    futures += [batcher.submit(each) for each in pieces]
    device.go.set()
    return [future.exception(10) or int(future.result()) for future in futures]


def test_single_piece_is_computed_at_once() -> None:
    device = Device()
    device.go.set()
    assert Batcher(device.run, 10**6).submit(piece(7)).result(10) == 7
    assert device.batches == [[7]]


def test_waiting_pieces_are_batched_by_kind_oldest_first() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    pieces = [piece(1), piece(2, 5, 4), piece(3), piece(4, measured=True), piece(5, 5, 4), piece(6)]
    assert submitted_while_busy(device, batcher, pieces) == list(range(7))
    assert device.batches == [[0], [1, 3, 6], [2, 5], [4]]
    assert (batcher.batches, batcher.pieces) == (4, 7)


def test_batch_is_limited_by_pixels_unless_it_is_a_single_piece() -> None:
    device = Device()
    batcher = Batcher(device.run, max_pixels=40)
    pieces = [piece(nth) for nth in range(1, 6)] + [piece(6, 10, 10), piece(7, 10, 10)]
    assert submitted_while_busy(device, batcher, pieces) == list(range(8))
    assert device.batches == [[0], [1, 2], [3, 4], [5], [6], [7]]


def test_pieces_are_retried_one_by_one_when_out_of_memory() -> None:
    device = Device(at_once=1)
    assert submitted_while_busy(device, Batcher(device.run, 10**6), [piece(1), piece(2)]) == [0, 1, 2]
    assert device.batches == [[0], [1], [2]]


def test_single_piece_that_is_out_of_memory_gets_the_error() -> None:
    device = Device(at_once=0)
    found = submitted_while_busy(device, Batcher(device.run, 10**6), [piece(1)])
    assert [type(each) for each in found] == [torch.OutOfMemoryError] * 2


def test_out_of_memory_error_does_not_keep_activations_alive() -> None:
    """On a full GPU the next batch needs their memory."""
    held: list[weakref.ref[Tensor]] = []

    def run(pieces: Sequence[Piece]) -> list[Tensor]:
        activations = torch.zeros(5)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        error = Batcher(run, 10**6).submit(piece(0)).exception(10)
        assert isinstance(error, torch.OutOfMemoryError)
        assert held[0]() is None
    finally:
        gc.enable()


def test_error_reaches_its_own_batch_only() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    found = submitted_while_busy(device, batcher, [piece(13), piece(1), piece(2, 5, 5)])
    assert [type(each) for each in found] == [int, ValueError, ValueError, int]
    assert batcher.failure is None


def test_accelerator_error_is_remembered_as_failure() -> None:
    def run(pieces: Sequence[Piece]) -> list[Tensor]:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    batcher = Batcher(run, 10**6)
    assert isinstance(batcher.submit(piece(0)).exception(10), torch.AcceleratorError)
    assert isinstance(batcher.failure, torch.AcceleratorError)


def test_cancelled_piece_is_not_computed() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    first = batcher.submit(piece(0))
    device.started.wait(10)
    left, stays = batcher.submit(piece(1)), batcher.submit(piece(2))
    assert left.cancel()
    device.go.set()
    assert (first.result(10), stays.result(10)) == (0, 2)
    assert device.batches == [[0], [2]]


def test_close_cancels_waiting_pieces() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    batcher.submit(piece(0))
    device.started.wait(10)
    late = batcher.submit(piece(1))
    threading.Timer(0.1, device.go.set).start()
    batcher.close()
    with pytest.raises(CancelledError):
        late.result(10)


def test_batches_are_smaller_on_cpus() -> None:
    assert most_pixels("cpu") < most_pixels("cuda:1") == MAX_PIXELS
