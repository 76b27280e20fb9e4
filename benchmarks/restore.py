"""Speed of restoring, overhead of tiles, and peak memory.

python -m benchmarks.restore --json

Whole pictures and tiles alternate in one process. Memory is measured in a separate process per size, without that of
the imports. Weights are random, which costs the same as trained ones.
"""

import itertools
import math
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import flops
from benchmarks.command import option, run
from benchmarks.memory import peak_bytes
from benchmarks.timing import alternate, pick_device
from benchmarks.update import matmul_rate
from deblur.config import presets
from deblur.inference.pieces import MAX_PIXELS
from deblur.inference.tiles import MARGIN, RAMP, TILE, restore_picture, spans
from deblur.models.build import build_generator

_Size = tuple[int, int]  # width, height


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = option("paper", "Preset.")
    width: int = option(1280, "Of the picture.")
    height: int = option(720, "Of the picture.")
    tile: int = option(TILE, "Side of the tiles.")
    memory: str = option(
        "640x360,1280x720,2560x1440,2560x1600,3840x2160", "Sizes for which memory is measured; the last two use tiles."
    )
    rounds: int = option(3, "Rounds.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    size, device = (settings.width, settings.height), pick_device()
    generator, picture = generator_of(settings.recipe, device), picture_of(size)
    restored: dict[str, np.ndarray] = {}

    def restore(way: str, **limits: int) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=way == "bfloat16"):
            restored[way] = restore_picture(generator, picture, device=device, **limits)

    whole = {"max_pixels": size[0] * size[1]}
    ways = {
        "whole": partial(restore, "whole", **whole),
        "tiled": partial(restore, "tiled", max_pixels=0, tile=settings.tile),
        "bfloat16": partial(restore, "bfloat16", **whole),
    }
    restore("whole", **whole)  # warms up
    turns = alternate(ways, settings.rounds)
    median = {way: statistics.median(found) for way, found in turns.items()}
    counted, ceiling = operations(generator, size), matmul_rate(device, torch.float32)
    peaks = {text: peak_bytes(restore_once, settings.recipe, _size(text)) for text in settings.memory.split(",")}
    figures: dict[str, Any] = {f"{way}_images_per_second": 1 / seconds for way, seconds in median.items()}
    for way in ("tiled", "bfloat16"):
        figures[f"{way}_to_whole_seconds"] = median[way] / median["whole"]
        figures[f"{way}_to_whole_seconds_of_each_round"] = [
            a / b for a, b in zip(turns[way], turns["whole"], strict=True)
        ]
        levels = np.abs(restored[way].astype(int) - restored["whole"])
        figures[f"{way}_levels_from_whole"] = {"mean": float(levels.mean()), "most": int(levels.max())}  # of 255
    return figures | {
        "tiled_to_whole_pixels": pixels_in_tiles(size, settings.tile, generator) / (size[0] * size[1]),
        "gflop": counted / 1e9,
        "matmul_gflop_per_second": ceiling / 1e9,
        "share_of_ceiling": counted / median["whole"] / ceiling,
        "whole_up_to_pixels": MAX_PIXELS,
        "peak_bytes": peaks,
        "bytes_per_pixel_more_whole": growth(peaks, tiled=False),
        "bytes_per_pixel_more_tiled": growth(peaks, tiled=True),
    }


def generator_of(recipe: str, device: torch.device) -> nn.Module:
    """The generator of a preset with random weights, in eval mode."""
    torch.manual_seed(0)
    return build_generator(presets.PRESETS[recipe]()).to(device).eval()


def picture_of(size: _Size) -> np.ndarray:
    """Noise, uint8 [H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def restore_once(recipe: str, size: _Size) -> None:
    """The function whose memory is measured: restores like deblur.restore, whole or in tiles."""
    device = pick_device()
    restore_picture(generator_of(recipe, device), picture_of(size), device=device)


def growth(peaks: dict[str, int], *, tiled: bool) -> float | None:
    """Growth of the peak in bytes per pixel, between the smallest and largest such picture; None for fewer than two."""
    found = sorted((math.prod(_size(text)), peak) for text, peak in peaks.items())
    chosen = [(pixels, peak) for pixels, peak in found if (pixels > MAX_PIXELS) == tiled]
    if len(chosen) < 2:
        return None
    (fewest, low), (most, high) = chosen[0], chosen[-1]
    return (high - low) / (most - fewest)


def operations(generator: nn.Module, size: _Size) -> int:
    """Operations for one whole picture, proportional to its pixels."""
    return flops.forward_of(generator, 1, 256).all * size[0] * size[1] // 256**2


def pixels_in_tiles(size: _Size, tile: int, generator: nn.Module) -> int:
    """Pixels that pass through the generator when a picture is restored in tiles."""
    rows, columns = (spans(length, tile, 2 * MARGIN + RAMP) for length in (size[1], size[0]))
    tiles = itertools.product(rows, columns)
    inside = sum((y.stop - y.start) * (x.stop - x.start) for y, x in tiles)
    in_one = max(size) <= tile
    measured = not in_one and any(isinstance(module, nn.InstanceNorm2d) for module in generator.modules())
    return inside + (size[0] * size[1] if measured else 0)  # deblur/inference/tiles.py: _measuring


def _size(text: str) -> _Size:
    width, height = text.split("x")
    return int(width), int(height)


if __name__ == "__main__":
    run("restore", __doc__, Settings, measure)
