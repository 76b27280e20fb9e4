"""A U-Net that gets its picture deconvolved, too, by the kernel that the picture shows: for camera shake.

Kernels of camera shake are longer than small networks can learn to invert from crops; they are estimated
(blur_kernel.py) and inverted (Wiener's filter) by formulas, and the network learns what to take of the results: it
removes ringing, and keeps to the blurred picture where the estimate is wrong, because the blur varies or there is none.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deblur.models.blur_kernel import KERNEL_SIDE, estimate_kernels, gradient_power, transfer_function
from deblur.models.fast_unet import FastUNet

REGULARISATIONS = (0.005, 0.05)  # weights of the squared gradients in Wiener's filter: sharp, and robust
_WINDOW, _RAMP = 832, 64  # pixels, about: one kernel each; neighbours overlap by a ramp
_SEEN = 512  # pixels: the middle of a window, which shows its kernel; more would cost time and gain nothing
_AT_ONCE = 16  # windows, on GPUs
_BORDER = 32  # pixels by which windows are continued for the filter
_TIKHONOV = 0.02  # of the squared picture, relative to that of its squared gradients: frequency 0 has none


class DeconvolutionUNet(FastUNet):
    """A fast U-Net of the blurred picture and two deconvolved ones; gates choose between the three at each pixel.

    Starts as the identity. Kernels are estimated in windows of about 832 pixels, so that blur may vary over a picture:
    tiles are an approximation of the whole.
    """

    def __init__(
        self, *, filters: int, encoder_blocks: Sequence[int], middle_blocks: int, decoder_blocks: Sequence[int]
    ) -> None:
        super().__init__(
            filters=filters,
            encoder_blocks=encoder_blocks,
            middle_blocks=middle_blocks,
            decoder_blocks=decoder_blocks,
            channels=3 * (1 + len(REGULARISATIONS)),
            out_channels=3 + len(REGULARISATIONS),
        )

    def forward(self, blurred: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the same size, about the same range."""
        deconvolved = [pictures.to(blurred.dtype) for pictures in deconvolve(blurred)]
        change, gates = self.change(torch.cat([blurred, *deconvolved], dim=1)).tensor_split([3], dim=1)
        restored = blurred + change
        for gate, pictures in zip(gates.split(1, dim=1), deconvolved, strict=True):
            restored = restored + gate * (pictures - blurred)
        return restored


@torch.no_grad()
def deconvolve(blurred: Tensor) -> list[Tensor]:
    """The pictures by estimated kernels for each of `REGULARISATIONS`, [B, 3, H, W] float32 in [-1.5, 1.5].

    Pictures with a side below twice the kernel's come back as they are.
    """
    pictures = blurred.float()
    height, width = pictures.shape[2:]
    if min(height, width) < 2 * KERNEL_SIDE:
        return [pictures] * len(REGULARISATIONS)
    windows = [(rows, columns) for rows in _spans(height) for columns in _spans(width)]
    cut = torch.cat([pictures[..., rows, columns] for rows, columns in windows])
    # One at a time on CPUs, where that is as fast: rounding of transforms there depends on the number of pictures, and
    # an estimate amplifies it.
    at_once = 1 if pictures.device.type == "cpu" else _AT_ONCE
    parts = [_deconvolved(some) for some in cut.split(at_once)]
    return [
        _blended(torch.cat(of_one).unflatten(0, (len(windows), -1)), windows, height, width)
        for of_one in zip(*parts, strict=True)
    ]


def _deconvolved(windows: Tensor) -> list[Tensor]:
    """Windows, [n, 3, h, w], for each of `REGULARISATIONS`, by one kernel for each window."""
    top, left = (max(0, (length - _SEEN) // 2) for length in windows.shape[2:])
    seen = windows[..., top : top + _SEEN, left : left + _SEEN]
    kernels = estimate_kernels((seen.mean(1) + 1) / 2)
    return list(wiener(windows, kernels, REGULARISATIONS))


def _blended(parts: Tensor, windows: Sequence[tuple[slice, slice]], height: int, width: int) -> Tensor:
    """[B, 3, height, width] of the results of windows, [windows, B, 3, h, w]."""
    total = parts.new_zeros(*parts.shape[1:3], height, width)
    weights = parts.new_zeros(height, width)
    for part, (rows, columns) in zip(parts, windows, strict=True):
        weight = torch.outer(_ramp(rows, height, parts.device), _ramp(columns, width, parts.device))
        total[..., rows, columns] += weight * part
        weights[rows, columns] += weight
    return total / weights


def wiener(blurred: Tensor, kernels: Tensor, regularisations: Sequence[float]) -> Iterator[Tensor]:
    """The x of least |kernel * x - blurred|^2 + r (|gradient of x|^2 + 0.02 |x|^2), for each regularisation r.

    blurred  [B, 3, H, W]  about [-1, 1]; H and W above 32, the border by which it is continued
    kernels  [B, k, k]     k odd, sum 1
    yields   [B, 3, H, W]  in [-1.5, 1.5]

    The border is reflected, and faded into its own blurred version, which makes the whole periodic (edge tapering).
    """
    wide = F.pad(blurred, (_BORDER,) * 4, mode="reflect")
    height, width = wide.shape[2:]
    transfer = transfer_function(kernels, height, width)[:, None]
    taper = torch.outer(_taper(height, wide.device), _taper(width, wide.device))
    circular = torch.fft.irfft2(torch.fft.rfft2(wide) * transfer, s=(height, width))
    spectrum = transfer.conj() * torch.fft.rfft2(torch.lerp(circular, wide, taper))
    power, smoothness = transfer.abs().square(), gradient_power(height, width, device=wide.device) + _TIKHONOV
    for regularisation in regularisations:
        sharp = torch.fft.irfft2(spectrum / (power + regularisation * smoothness), s=(height, width))
        yield sharp[..., _BORDER:-_BORDER, _BORDER:-_BORDER].clamp(-1.5, 1.5)


def _taper(length: int, device: torch.device) -> Tensor:
    """[length]: 0 at the ends, 1 from `_BORDER` pixels on, half a cosine between."""
    place = torch.arange(length, device=device) + 0.5
    return (1 - torch.cos(math.pi * (torch.minimum(place, length - place) / _BORDER).clamp(max=1))) / 2


def _spans(length: int) -> list[slice]:
    """Equal windows of about `_WINDOW` pixels that overlap by about a ramp; one of the whole below 1216 pixels."""
    count = max(1, math.floor((length - _RAMP) / (_WINDOW - _RAMP) + 0.5))
    side = math.ceil((length + (count - 1) * _RAMP) / count)
    starts = [(length - side) * nth // max(1, count - 1) for nth in range(count)]
    return [slice(start, start + side) for start in starts]


def _ramp(span: slice, length: int, device: torch.device) -> Tensor:
    """Weights of a window's pixels: lower where a neighbour takes over, never 0."""
    place = torch.arange(span.start, span.stop, device=device) + 0.5
    rise = torch.ones_like(place) if span.start == 0 else ((place - span.start) / _RAMP).clamp(max=1)
    fall = torch.ones_like(place) if span.stop == length else ((span.stop - place) / _RAMP).clamp(max=1)
    return rise * fall
