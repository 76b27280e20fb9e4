"""Restores pictures of any size: whole if memory allows, otherwise in overlapping tiles.

Tiles start where strides fall on the same pixels as in the whole picture. The outer `margin` pixels of a tile are only
context and are discarded, except at the picture's borders, where the padding is that of the whole picture. The inner
parts are blended with linear ramps.

The steps are Python generators that yield the pieces to compute next, so that these can be computed alone
(`restore_picture`) or in batches with other pictures' pieces (deblur/app/batching.py).
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

# Tiles start at its multiples: the U-Net halves the picture eight times, the ResNet twice.
FACTOR = 256
# At least the receptive radius of the local networks. The ResNet with 9 blocks: two 3x3 convolutions per block at a
# quarter of the resolution are 2 x 4 pixels, 72 in all; first layer, halvings, doublings and the last 7x7 layer add at
# most 18. The fast U-Net of `fidelity`: 2 x 8 pixels for each of 4 blocks, 2 x 4 and 2 x 2 for 4 blocks each,
# and at most 12 for the other layers, 124. pix2pix' U-Net, NAFNet and MAXIM see further, and the deconvolution U-Net
# estimates kernels in windows of its tile: tiles approximate.
MARGIN = 128
RAMP = 16  # pixels over which one tile fades into the next
TILE = 1024

log = logging.getLogger(__name__)


def restore_picture(
    generator: nn.Module,
    picture: np.ndarray,
    *,
    device: torch.device | str,
    max_pixels: int | None = None,
    tile: int = TILE,
) -> np.ndarray:
    """Restores a picture; in tiles of `tile` pixels if it exceeds `max_pixels` or the GPU's memory.

    generator   in eval mode, on the device
    picture     [H, W, 3]  uint8 RGB
    max_pixels  default: the generator's `PieceRunner.max_pixels`
    returns     [H, W, 3]  uint8 RGB, rounded
    """
    runner = PieceRunner(generator, device)
    limit = runner.max_pixels if max_pixels is None else max_pixels
    steps = restoring(picture, runner.has_statistics, max_pixels=limit, tile=tile)
    wanted = advance(steps)
    while isinstance(wanted, list):
        wanted = advance(steps, _results(runner, wanted))
    return wanted


def _results(runner: PieceRunner, pieces: list[Piece]) -> list[Tensor] | torch.OutOfMemoryError:
    try:
        return [runner.run([piece])[0] for piece in pieces]
    except torch.OutOfMemoryError as error:
        return error.with_traceback(None)  # its frames hold the activations alive


Steps = Generator[list[Piece], list[Tensor], np.ndarray]
"""Yields pieces, is sent their results (see `PieceRunner.run`), returns the picture; see `advance`."""


def advance(steps: Steps, results: list[Tensor] | torch.OutOfMemoryError | None = None) -> list[Piece] | np.ndarray:
    """The pieces to compute next, or finally the picture; `results` are those of the previous pieces."""
    try:
        if isinstance(results, torch.OutOfMemoryError):
            return steps.throw(results)
        return next(steps) if results is None else steps.send(results)
    except StopIteration as end:
        picture: np.ndarray = end.value
        return picture


def restoring(picture: np.ndarray, has_statistics: bool, *, max_pixels: int, tile: int = TILE) -> Steps:
    """The steps of `restore_picture`; for `has_statistics` and `max_pixels` see `PieceRunner`."""
    height, width = picture.shape[:2]
    if height * width <= max_pixels:
        try:
            (whole,) = yield [Piece(pixels=picture)]
            return _as_picture(whole)
        except torch.OutOfMemoryError:
            log.warning("not enough GPU memory for %d x %d pixels at once", width, height)
        torch.cuda.empty_cache()
    log.info("restoring %dx%d pixels in tiles of %d", width, height, tile)
    return (yield from restoring_tiled(picture, has_statistics, tile=tile))


def restoring_tiled(picture: np.ndarray, has_statistics: bool, *, tile: int = TILE, margin: int = MARGIN) -> Steps:
    """The steps of restoring one picture tile by tile, in the memory of one row of tiles beside the two pictures.

    With BatchNorm the result equals the whole picture's except for rounding, if `margin` covers the receptive field.
    With InstanceNorm it is an approximation: see `_measuring`.

    picture  [H, W, 3]  uint8 RGB
    tile     maximum side of a tile in pixels, at least 2 x margin + RAMP + FACTOR (ValueError otherwise)
    returns  [H, W, 3]  uint8 RGB, rounded
    """
    height, width = picture.shape[:2]
    overlap = 2 * margin + RAMP
    if tile < overlap + FACTOR:
        raise ValueError(f"tile is {tile} pixels; with its context it must be at least {overlap + FACTOR}")
    statistics = (yield from _measuring(picture, tile)) if has_statistics and max(height, width) > tile else None
    rows, columns = spans(height, tile, overlap), spans(width, tile, overlap)
    row_weights, column_weights = ramps(rows, margin), ramps(columns, margin)
    restored = np.empty_like(picture)
    unfinished = torch.zeros(3, 0, width)  # what this row of tiles shares with the one above
    for y, next_y, row_weight in zip(rows, [*rows[1:], slice(height, height)], row_weights, strict=True):
        pieces = yield [Piece(pixels=picture[y, x], statistics=statistics) for x in columns]
        band = torch.zeros(3, y.stop - y.start, width)
        band[:, : unfinished.shape[1]] = unfinished
        for x, column_weight, piece in zip(columns, column_weights, pieces, strict=True):
            band[..., x] += piece * row_weight[:, None] * column_weight
        finished, unfinished = band.tensor_split([next_y.start - y.start], dim=1)
        restored[y.start : next_y.start] = _as_picture(finished)
    return restored


def _measuring(picture: np.ndarray, tile: int) -> Generator[list[Piece], list[Tensor], Tensor]:
    """The step that measures a picture's statistics, [2, C], on non-overlapping tiles.

    An approximation, as this pass normalises tiles by their own statistics: with a small trained ResNet, 49-70 dB PSNR
    to the result of the whole picture instead of 43-56 dB (more passes diverge).
    """
    tiles = itertools.product(_cuts(picture.shape[0], tile), _cuts(picture.shape[1], tile))
    sums = yield [Piece(pixels=picture[y, x], measured=True) for y, x in tiles]
    return statistics_of(torch.stack(sums).sum(dim=0))


def _as_picture(restored: Tensor) -> np.ndarray:
    """[3, H, W] floats as [H, W, 3] uint8."""
    pixels: np.ndarray = to_uint8(restored).permute(1, 2, 0).numpy()
    return pixels


def spans(length: int, tile: int, overlap: int) -> list[slice]:
    """Evenly spread pieces of an axis, at most `tile` long, that overlap by at least `overlap` pixels."""
    last = math.ceil(max(0, length - tile) / FACTOR) * FACTOR
    gaps = math.ceil(last / ((tile - overlap) // FACTOR * FACTOR))
    starts = [last * i // max(1, gaps) // FACTOR * FACTOR for i in range(gaps + 1)]
    return [slice(start, min(start + tile, length)) for start in starts]


def _cuts(length: int, tile: int) -> list[slice]:
    """Adjacent pieces of an axis, at most `tile` long."""
    starts = [piece.start for piece in spans(length, tile, 0)]
    return [slice(*ends) for ends in itertools.pairwise([*starts, length])]


def ramps(pieces: list[slice], margin: int) -> list[Tensor]:
    """Blending weights of each piece's pixels, float32; they sum to one at every pixel of the axis."""
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
