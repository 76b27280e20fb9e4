"""Pictures of any size through a generator: whole where memory allows, else in overlapping tiles.

A tile starts where strides fall on the same pixels as in the whole picture, and only its inner part counts: the outer
`margin` pixels are context, thrown away except at the borders of the picture, where padding is what the whole picture
has too. Inner parts meet in linear ramps.
"""

import copy
import itertools
import logging
import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from deblur.quality import from_uint8, to_uint8

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
    pixels = from_uint8(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).unsqueeze(0))
    restored = _whole(generator, pixels, device) if pixels[0, 0].numel() <= max_pixels else None
    if restored is None:
        height, width = picture.shape[:2]
        log.info("%dx%d is restored in tiles of %d pixels", width, height, tile)
        restored = restore_tiled(generator, pixels, device=device, tile=tile)
    return np.ascontiguousarray(to_uint8(restored)[0].permute(1, 2, 0).numpy())


@torch.inference_mode()
def _whole(generator: nn.Module, pictures: Tensor, device: torch.device | str) -> Tensor | None:
    """The restored pictures, or None where the GPU has no memory for them."""
    try:
        return generator(pictures.to(device)).float().cpu()
    except torch.OutOfMemoryError:
        log.warning("no GPU memory for %d x %d pixels at once", pictures.shape[-1], pictures.shape[-2])
    torch.cuda.empty_cache()  # after the handler: the error holds the activations alive
    return None


@torch.inference_mode()
def restore_tiled(
    generator: nn.Module, pictures: Tensor, *, device: torch.device | str, tile: int = TILE, margin: int = MARGIN
) -> Tensor:
    """One picture restored tile by tile; memory is a tile's.

    With BatchNorm the result is the whole picture's but for rounding, if `margin` covers the receptive field. With
    InstanceNorm it is close: see `share_statistics`.

    generator  in eval mode, on the device
    pictures   [1, 3, H, W]  RGB in [-1, 1], on the CPU
    tile       longest side of a tile in pixels, at least 2 x margin + RAMP + FACTOR (ValueError otherwise)
    returns    [1, 3, H, W]  float32 on the CPU
    """
    height, width = pictures.shape[-2:]
    overlap = 2 * margin + RAMP
    if tile < overlap + FACTOR:
        raise ValueError(f"tiles of {tile} pixels are too small: with their context they need {overlap + FACTOR}")
    if max(height, width) > tile:
        apart = itertools.product(_cuts(height, tile), _cuts(width, tile))
        generator = share_statistics(generator, (pictures[..., y, x].to(device) for y, x in apart))
    rows, columns = spans(height, tile, overlap), spans(width, tile, overlap)
    row_weights, column_weights = ramps(rows, margin), ramps(columns, margin)
    restored = torch.zeros_like(pictures, dtype=torch.float32)
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        y, x = rows[i], columns[j]
        piece = generator(pictures[..., y, x].to(device)).float().cpu()
        restored[..., y, x] += piece * row_weights[i, y, None] * column_weights[j, x]
    return restored


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


def ramps(pieces: list[slice], margin: int) -> Tensor:
    """Weight of each piece at each pixel of the axis, float32 [pieces, length]; each pixel's weights sum to one."""
    length = pieces[-1].stop
    position = torch.arange(length) + 0.5
    weights = torch.zeros(len(pieces), length)
    for weight, piece in zip(weights, pieces, strict=True):
        inside = weight[piece].fill_(1)
        if piece.start > 0:
            inside *= ((position[piece] - piece.start - margin) / RAMP).clamp(0, 1)
        if piece.stop < length:
            inside *= ((piece.stop - margin - position[piece]) / RAMP).clamp(0, 1)
    return weights / weights.sum(dim=0)


def share_statistics(generator: nn.Module, tiles: Iterable[Tensor]) -> nn.Module:
    """A copy whose InstanceNorms take mean and variance from all tiles together; the generator itself without them.

    InstanceNorm's statistics are of the whole picture; a tile's own would give every tile another contrast. One pass
    over tiles that do not overlap measures them. It is an approximation, as the tiles of that pass are normalised by
    their own: a trained small ResNet came to 49-70 dB of the whole picture instead of 43-56 (more passes diverge).
    """
    if not any(isinstance(module, nn.InstanceNorm2d) for module in generator.modules()):
        return generator
    shared = copy.deepcopy(generator)
    norms = {name: module for name, module in shared.named_modules() if isinstance(module, nn.InstanceNorm2d)}
    sums = dict.fromkeys(norms.values(), torch.zeros((), dtype=torch.float64))

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = (moment.double() for moment in torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0))
        pixels = inputs[0][0, 0].numel()
        sums[norm] = sums[norm] + pixels * torch.stack([mean, variance + mean**2, torch.ones_like(mean)])

    for norm in sums:
        norm.register_forward_pre_hook(measure)
    for tile in tiles:
        shared(tile)
    for name, norm in norms.items():
        shared.set_submodule(name, _fixed(norm, sums[norm]))
    return shared


def _fixed(norm: nn.InstanceNorm2d, sums: Tensor) -> nn.BatchNorm2d:
    """A norm layer of constant statistics, from the sums [3, C] of values, of their squares, and of ones."""
    mean, square = sums[:2] / sums[2]
    fixed = nn.BatchNorm2d(norm.num_features, eps=norm.eps, affine=norm.affine).eval()
    fixed.running_mean, fixed.running_var = mean.float(), (square - mean**2).float()
    if norm.affine:
        fixed.weight, fixed.bias = norm.weight, norm.bias
    return fixed
