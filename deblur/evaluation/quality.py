"""PSNR and SSIM, one value per picture, computed on the pictures' device.

The deblurring literature uses three definitions of SSIM; this is the standard one, per channel in two dimensions, equal
to scikit-image's `structural_similarity` with `gaussian_weights=True, sigma=1.5, data_range=255`. All arithmetic is
float64, on GPUs too: variances as differences of squares lose precision.
"""

import math

import torch
from torch import Tensor

DEFINITION = (
    "PSNR and SSIM of full frames, RGB rounded to 8 bits, data range 255, mean over pictures; "
    "SSIM per channel, Gaussian window 11x11 of sigma 1.5, population covariance, without a border of 5 pixels"
)
_SIGMA = 1.5
_RADIUS = 5  # the Gaussian is truncated at 3.5 sigma
_WINDOW = 2 * _RADIUS + 1
# Wang et al. 2004 (doi:10.1109/TIP.2003.819861): K1 = 0.01, K2 = 0.03
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


def psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB.

    restored, sharp  [B, 3, H, W]  uint8 RGB
    returns          [B]           float64; infinite for equal pictures
    """
    _same_uint8(restored, sharp)
    squared_error = (restored.double() - sharp.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / squared_error)


def ssim(restored: Tensor, sharp: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13), mean over the map without its border and over channels.

    restored, sharp  [B, 3, H, W]  uint8 RGB, H and W at least 11 (ValueError otherwise)
    returns          [B]           float64 in [-1, 1]; 1 for equal pictures
    """
    _same_uint8(restored, sharp)
    height, width = sharp.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(f"pictures of {width}x{height} are smaller than SSIM's window of {_WINDOW}x{_WINDOW}")
    x, y = restored.double(), sharp.double()
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    variances = mean_xx - mean_x.square() + mean_yy - mean_y.square()
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    similarity: Tensor = luminance * structure
    return similarity.mean(dim=(1, 2, 3))


def _blur(pictures: Tensor) -> Tensor:
    """Gaussian means of full windows: [..., H, W] -> [..., H - 10, W - 10]."""
    taps = [math.exp(-0.5 * (distance / _SIGMA) ** 2) for distance in range(-_RADIUS, _RADIUS + 1)]
    for dim in (-2, -1):
        size = pictures.shape[dim] - 2 * _RADIUS
        # Six times as fast as conv2d, which has no fast path for float64 on CPUs.
        blurred = torch.zeros_like(pictures.narrow(dim, 0, size))
        for start, tap in enumerate(taps):
            blurred.add_(pictures.narrow(dim, start, size), alpha=tap / sum(taps))
        pictures = blurred
    return pictures


def _same_uint8(restored: Tensor, sharp: Tensor) -> None:
    if restored.dtype != torch.uint8 or sharp.dtype != torch.uint8:
        raise ValueError(f"restored is {restored.dtype}, sharp is {sharp.dtype}; both must be uint8 (see to_uint8)")
    if restored.shape != sharp.shape or sharp.dim() != 4:
        raise ValueError(f"restored is {list(restored.shape)}, sharp {list(sharp.shape)}; both must be [B, 3, H, W]")
