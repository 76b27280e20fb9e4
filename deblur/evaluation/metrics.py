"""PSNR and SSIM of two pictures, for Python programs; defined as in quality.py."""

import torch
from torch import Tensor

from cluster.errors import InputError
from deblur.data.arrays import Picture, as_photograph
from deblur.evaluation import quality


def psnr(restored: Picture, sharp: Picture) -> float:
    """Peak signal-to-noise ratio in dB of RGB in 8 bits; infinite for equal pictures. Raises InputError."""
    return float(quality.psnr(*_tensors(restored, sharp)))


def ssim(restored: Picture, sharp: Picture) -> float:
    """Structural similarity in [-1, 1]; 1 for equal pictures. Raises InputError, also below 11x11 pixels."""
    pair = _tensors(restored, sharp)
    try:
        return float(quality.ssim(*pair))
    except ValueError as error:
        raise InputError(str(error)) from error


def _tensors(restored: Picture, sharp: Picture) -> tuple[Tensor, Tensor]:
    a, b = (torch.from_numpy(as_photograph(picture).pixels).permute(2, 0, 1)[None] for picture in (restored, sharp))
    if a.shape != b.shape:
        sizes = " and ".join(f"{side.shape[3]}x{side.shape[2]}" for side in (a, b))
        raise InputError(f"the pictures have {sizes} pixels; both must have the same size")
    return a, b
