"""Batches: which pieces go together, and that each gets its own result whatever befalls the others."""

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
from deblur.inference.pieces import Piece
from deblur.inference.tiles import MAX_PIXELS


def piece(value: int, height: int = 4, width: int = 4, measured: bool = False) -> Piece:
    return Piece(pixels=np.full((height, width, 3), value, np.uint8), measured=measured)


class Device:
    """Answers a piece with its value; waits in the first batch until it is let go."""

    def __init__(self, at_once: int = 99) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.at_once = at_once

    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        values = [int(each.pixels[0, 0, 0]) for each in pieces]
        self.started.set()
        self.go.wait(10)
        if 13 in values:
            raise ValueError("an unlucky piece")
        if len(values) > self.at_once:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert len({each.kind for each in pieces}) == 1
        self.batches.append(values)
        return [torch.tensor(value) for value in values]


def submitted_while_busy(device: Device, batcher: Batcher, pieces: list[Piece]) -> list[int | Exception]:
    """What comes of a first piece, 0, and of those that came while the device was busy with it."""
    futures = [batcher.submit(piece(0))]
    device.started.wait(10)
    futures += [batcher.submit(each) for each in pieces]
    device.go.set()
    return [future.exception(10) or int(future.result()) for future in futures]


def test_a_piece_that_comes_alone_goes_at_once() -> None:
    device = Device()
    device.go.set()
    assert Batcher(device.run, 10**6).submit(piece(7)).result(10) == 7
    assert device.batches == [[7]]


def test_what_waits_goes_together_with_its_kind_oldest_first() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    pieces = [piece(1), piece(2, 5, 4), piece(3), piece(4, measured=True), piece(5, 5, 4), piece(6)]
    assert submitted_while_busy(device, batcher, pieces) == list(range(7))
    assert device.batches == [[0], [1, 3, 6], [2, 5], [4]]
    assert (batcher.batches, batcher.pieces) == (4, 7)


def test_a_batch_has_so_many_pixels_at_most_but_one_piece_always_goes() -> None:
    device = Device()
    batcher = Batcher(device.run, max_pixels=40)
    pieces = [piece(nth) for nth in range(1, 6)] + [piece(6, 10, 10), piece(7, 10, 10)]
    assert submitted_while_busy(device, batcher, pieces) == list(range(8))
    assert device.batches == [[0], [1, 2], [3, 4], [5], [6], [7]]


def test_pieces_for_which_there_is_no_memory_together_are_computed_alone() -> None:
    device = Device(at_once=1)
    assert submitted_while_busy(device, Batcher(device.run, 10**6), [piece(1), piece(2)]) == [0, 1, 2]
    assert device.batches == [[0], [1], [2]]


def test_a_piece_for_which_there_is_no_memory_at_all_hears_of_it() -> None:
    device = Device(at_once=0)
    found = submitted_while_busy(device, Batcher(device.run, 10**6), [piece(1)])
    assert [type(each) for each in found] == [torch.OutOfMemoryError] * 2


def test_what_a_device_had_no_memory_for_is_let_go() -> None:
    """On a full GPU what follows needs its memory."""
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


def test_an_error_is_that_of_its_batch_and_not_of_the_next() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    found = submitted_while_busy(device, batcher, [piece(13), piece(1), piece(2, 5, 5)])
    assert [type(each) for each in found] == [int, ValueError, ValueError, int]
    assert batcher.failure is None


def test_a_device_that_is_of_no_use_any_more_is_remembered() -> None:
    def run(pieces: Sequence[Piece]) -> list[Tensor]:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    batcher = Batcher(run, 10**6)
    assert isinstance(batcher.submit(piece(0)).exception(10), torch.AcceleratorError)
    assert isinstance(batcher.failure, torch.AcceleratorError)


def test_a_cancelled_piece_is_not_computed() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    first = batcher.submit(piece(0))
    device.started.wait(10)
    left, stays = batcher.submit(piece(1)), batcher.submit(piece(2))
    assert left.cancel()
    device.go.set()
    assert (first.result(10), stays.result(10)) == (0, 2)
    assert device.batches == [[0], [2]]


def test_at_the_end_nobody_is_left_waiting() -> None:
    device = Device()
    batcher = Batcher(device.run, 10**6)
    batcher.submit(piece(0))
    device.started.wait(10)
    late = batcher.submit(piece(1))
    threading.Timer(0.1, device.go.set).start()
    batcher.close()
    with pytest.raises(CancelledError):
        late.result(10)


def test_a_batch_on_cpus_is_no_larger_than_what_keeps_them_busy() -> None:
    assert most_pixels("cpu") < most_pixels("cuda:1") == MAX_PIXELS
