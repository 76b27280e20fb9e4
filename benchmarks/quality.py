"""Quality and cost of several models on the same pairs: a table in Markdown.

python -m benchmarks.quality --blurred FOLDER --sharp FOLDER --models embedded,maxim.safetensors,runs/RUN

The blurred input is the first row: the score of a model that changes nothing. With --classical, so is unsupervised
Wiener deconvolution (scikit-image; Orieux et al. 2010) with a Gaussian kernel, which needs no knowledge of the blur.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import skimage.restoration
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import option, run
from benchmarks.timing import pick_device
from deblur.evaluation.evaluator import KeyedPair, evaluate, folder_pairs
from deblur.evaluation.lpips import load_lpips
from deblur.evaluation.scores import Score, mean
from deblur.inference.tiles import restore_picture
from deblur.models.trained import load_model

FRAME = (720, 1280)  # height and width for which operations are counted
_WIENER_SIGMA = 2.0  # pixels


@dataclass(frozen=True, kw_only=True)
class Settings:
    blurred: str = option("", "Folder of blurred pictures.")
    sharp: str = option("", "Folder of sharp pictures with the same names.")
    models: str = option("embedded", "Models, separated by commas: embedded, runs, or .safetensors files.")
    lpips_weights: str = option("", "State dict of torchvision's alexnet; LPIPS is left out without it.")
    classical: bool = option(False, "Add unsupervised Wiener deconvolution.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """A row for each model, by its name: means over the pairs, and costs."""
    device = pick_device()
    lpips_network = load_lpips(settings.lpips_weights, device) if settings.lpips_weights else None
    pairs: list[KeyedPair] = list(folder_pairs(settings.blurred, settings.sharp)[1])
    megapixels = sum(blurred.shape[0] * blurred.shape[1] for _, blurred, _ in pairs) / 1e6
    networks: dict[str, Callable[[], nn.Module]] = {
        name: lambda name=name: load_model(name, device) for name in settings.models.split(",")
    }
    if settings.classical:
        networks["unsupervised Wiener"] = Wiener
    rows: dict[str, Any] = {}
    for name, load in networks.items():
        model = load()
        started = time.perf_counter()
        for _, blurred, _ in pairs:
            restore_picture(model, blurred, device=device)
        seconds = (time.perf_counter() - started) / megapixels
        score = mean(evaluate(model, pairs, device, lpips_network=lpips_network))
        rows.setdefault("blurred input", _row(score, "blurred"))
        rows[name] = _row(score, "restored") | cost(model, device) | {"s/MP": round(seconds, 2)}
    print(markdown(rows))
    return rows


def _row(score: Score, side: str) -> dict[str, Any]:
    values = {name: getattr(score, f"{side}_{name}") for name in ("psnr", "ssim", "lpips")}
    digits = {"psnr": 2, "ssim": 4, "lpips": 4}
    return {name.upper(): round(value, digits[name]) for name, value in values.items() if value is not None}


def cost(model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Parameters in millions, and multiply-adds in billions for a frame of 1280x720."""
    parameters = sum(p.numel() for p in model.parameters())
    if not parameters:
        return {}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, *FRAME, device=device))
    return {"M parameters": round(parameters / 1e6, 2), "GMAC": round(counter.get_total_flops() / 2e9, 1)}


class Wiener(nn.Module):
    """Deconvolution with a Gaussian kernel and a regularisation estimated from the picture."""

    def forward(self, blurred: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the same."""
        axis = np.arange(-8, 9)
        line = np.exp(-(axis**2) / (2 * _WIENER_SIGMA**2))
        kernel = np.outer(line, line) / line.sum() ** 2
        planes = (blurred.flatten(0, 1).double().numpy() + 1) / 2
        restored = [skimage.restoration.unsupervised_wiener(plane, kernel, rng=0)[0] for plane in planes]
        return torch.from_numpy(np.stack(restored)).clamp(0, 1).view_as(blurred).float() * 2 - 1


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(str(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    run("quality", __doc__ or "", Settings, measure)
