"""Pictures of any size through a generator: whole where memory allows, else in overlapping tiles.

A tile starts where strides fall on the same pixels as in the whole picture, and only its inner part counts: the outer
`margin` pixels are context, thrown away except at the borders of the picture, where padding is what the whole picture
has too. Inner parts meet in linear ramps.

What is computed next is a generator's `yield`; who computes it, alone (`restore_picture`) or with pieces of other
pictures (deblur/app/batching.py), is not known here.
"""

import itertools
import logging
import math
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor, nn

from deblur.inference.pieces import Piece, PieceRunner, statistics_of
from deblur.models.pixels import to_uint8

# Tiles start at multiples of it: the U-Net halves the picture eight times, the ResNet twice.
FACTOR = 256
# What a pixel depends on in the ResNet of 9 blocks: two 3x3 convolutions a block at a quarter of the resolution are
# 2 x 4 pixels each, 72 in all; the stem, both halvings, both doublings and the last 7x7 layer add 18 at most. The U-Net
# sees all of a picture: its tiles are an approximation.
MARGIN = 96
RAMP = 16  # pixels over which one tile fades into the next
TILE = 1024
MAX_PIXELS = 4_000_000  # the paper's generator takes about 1 KB a pixel

log = logging.getLogger(__name__)


def restore_picture(
    generator: nn.Module,
    picture: np.ndarray,
    *,
    device: torch.device | str,
    max_pixels: int = MAX_PIXELS,
    tile: int = TILE,
) -> np.ndarray:
    """The restored picture; in tiles of `tile` pixels beyond `max_pixels`, or where a GPU has no memory for the whole.

    generator  in eval mode, on the device
    picture    [H, W, 3]  uint8 RGB
    returns    [H, W, 3]  uint8 RGB, rounded
    """
    runner = PieceRunner(generator, device)
    steps = restoring(picture, runner.has_statistics, max_pixels=max_pixels, tile=tile)
    found = advance(steps)
    while isinstance(found, list):
        found = advance(steps, _results(runner, found))
    return found


def _results(runner: PieceRunner, pieces: list[Piece]) -> list[Tensor] | torch.OutOfMemoryError:
    try:
        return [runner.run([piece])[0] for piece in pieces]
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)  # its frames hold the activations alive


Steps = Generator[list[Piece], list[Tensor], np.ndarray]
"""Asks for pieces, is sent their results (see `PieceRunner.run`), returns the picture; see `advance`."""


def advance(steps: Steps, results: list[Tensor] | torch.OutOfMemoryError | None = None) -> list[Piece] | np.ndarray:
    """The pieces that are to be computed next, or the picture at the end; `results` of the pieces asked for before."""
    try:
        return steps.throw(results) if isinstance(results, torch.OutOfMemoryError) else steps.send(results)
    except StopIteration as end:
        return end.value


def restoring(picture: np.ndarray, has_statistics: bool, *, max_pixels: int = MAX_PIXELS, tile: int = TILE) -> Steps:
    """The steps of `restore_picture`; `has_statistics` as the generator's `PieceRunner`."""
    height, width = picture.shape[:2]
    if height * width <= max_pixels:
        try:
            (whole,) = yield [Piece(pixels=picture)]
            return _as_picture(whole)
        except torch.OutOfMemoryError:
            log.warning("no GPU memory for %d x %d pixels at once", width, height)
        torch.cuda.empty_cache()
    log.info("%dx%d is restored in tiles of %d pixels", width, height, tile)
    return _as_picture((yield from restoring_tiled(picture, has_statistics, tile=tile)))


def restoring_tiled(
    picture: np.ndarray, has_statistics: bool, *, tile: int = TILE, margin: int = MARGIN
) -> Generator[list[Piece], list[Tensor], Tensor]:
    """The steps to one picture restored tile by tile; the generator's memory is a tile's.

    With BatchNorm the result is the whole picture's but for rounding, if `margin` covers the receptive field. With
    InstanceNorm it is close: see `_measuring`.

    picture  [H, W, 3]  uint8 RGB
    tile     longest side of a tile in pixels, at least 2 x margin + RAMP + FACTOR (ValueError otherwise)
    returns  [3, H, W]  float32, RGB in [-1, 1]
    """
    height, width = picture.shape[:2]
    overlap = 2 * margin + RAMP
    if tile < overlap + FACTOR:
        raise ValueError(f"tiles of {tile} pixels are too small: with their context they need {overlap + FACTOR}")
    statistics = (yield from _measuring(picture, tile)) if has_statistics and max(height, width) > tile else None
    rows, columns = spans(height, tile, overlap), spans(width, tile, overlap)
    row_weights, column_weights = ramps(rows, margin), ramps(columns, margin)
    restored = torch.zeros(3, height, width)
    for y, row_weight in zip(rows, row_weights, strict=True):  # a row at a time: results are four times the pixels
        pieces = yield [Piece(pixels=picture[y, x], statistics=statistics) for x in columns]
        for x, column_weight, piece in zip(columns, column_weights, pieces, strict=True):
            restored[..., y, x] += piece * row_weight[:, None] * column_weight
    return restored


def _measuring(picture: np.ndarray, tile: int) -> Generator[list[Piece], list[Tensor], Tensor]:
    """The step to the statistics of a picture, [2, C], from tiles that do not overlap.

    It is an approximation, as the tiles of that pass are normalised by their own: a trained small ResNet came to
    49-70 dB of the whole picture instead of 43-56 (more passes diverge).
    """
    apart = itertools.product(_cuts(picture.shape[0], tile), _cuts(picture.shape[1], tile))
    sums = yield [Piece(pixels=picture[y, x], measured=True) for y, x in apart]
    return statistics_of(torch.stack(sums).sum(dim=0))


def _as_picture(restored: Tensor) -> np.ndarray:
    """[3, H, W] floats as [H, W, 3] uint8."""
    picture = np.empty((*restored.shape[1:], 3), np.uint8)
    for top in range(0, len(picture), FACTOR):  # rounding all at once would take three times the floats
        rows = slice(top, top + FACTOR)
        picture[rows] = to_uint8(restored[:, rows]).permute(1, 2, 0).numpy()
    return picture


def spans(length: int, tile: int, overlap: int) -> list[slice]:
    """Evenly spread pieces of an axis, none longer than `tile`, that share at least `overlap` pixels."""
    last = math.ceil(max(0, length - tile) / FACTOR) * FACTOR
    gaps = math.ceil(last / ((tile - overlap) // FACTOR * FACTOR))
    starts = [last * i // max(1, gaps) // FACTOR * FACTOR for i in range(gaps + 1)]
    return [slice(start, min(start + tile, length)) for start in starts]


def _cuts(length: int, tile: int) -> list[slice]:
    """The axis in pieces, none longer than `tile`, that share nothing."""
    starts = [piece.start for piece in spans(length, tile, 0)]
    return [slice(*ends) for ends in itertools.pairwise([*starts, length])]


def ramps(pieces: list[slice], margin: int) -> list[Tensor]:
    """Weights of each piece at its own pixels, float32; those of all pieces at a pixel of the axis sum to one."""
    length = pieces[-1].stop
    total, weights = torch.zeros(length), []
    for piece in pieces:
        position = torch.arange(piece.start, piece.stop) + 0.5
        weight = torch.ones(len(position))
        if piece.start > 0:
            weight *= ((position - piece.start - margin) / RAMP).clamp(0, 1)
        if piece.stop < length:
            weight *= ((piece.stop - margin - position) / RAMP).clamp(0, 1)
        total[piece] += weight
        weights.append(weight)
    return [weight / total[piece] for weight, piece in zip(weights, pieces, strict=True)]
