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
_WINDOW, _RAMP = 448, 64  # pixels: one kernel each; neighbours overlap by a ramp
_BORDER = 32  # pixels by which windows are continued for the filter
_FLAT = 0.02  # what the filter takes for the power of a gradient at frequency 0


class DeconvolutionUNet(FastUNet):
    """A fast U-Net of the blurred picture and two deconvolved ones; gates choose between the three at each pixel.

    Starts as the identity. Kernels are estimated in windows of up to 448 pixels, so that blur may vary over a picture:
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
        deconvolved = deconvolve(blurred)
        change, gates = self.change(torch.cat([blurred, *deconvolved], dim=1)).tensor_split([3], dim=1)
        restored = blurred + change
        for gate, picture in zip(gates.split(1, dim=1), deconvolved, strict=True):
            restored = restored + gate * (picture - blurred)
        return restored


@torch.no_grad()
def deconvolve(blurred: Tensor) -> list[Tensor]:
    """The pictures by estimated kernels for each of `REGULARISATIONS`, [B, 3, H, W] float32 in [-1.5, 1.5].

    A picture with a side below twice the kernel's comes back as it is.
    """
    pictures = blurred.float()
    height, width = pictures.shape[2:]
    if min(height, width) < 2 * KERNEL_SIDE:
        return [pictures] * len(REGULARISATIONS)
    summed = [torch.zeros_like(pictures) for _ in REGULARISATIONS]
    weights = pictures.new_zeros(height, width)
    for y in _spans(height):
        for x in _spans(width):
            weight = _ramp(y, height)[:, None] * _ramp(x, width)
            weight = weight.to(pictures.device)
            weights[y, x] += weight
            for batch in _batches(pictures):
                window = pictures[batch, :, y, x]
                kernels = estimate_kernels((window.mean(1) + 1) / 2)
                for target, result in zip(summed, wiener(window, kernels, REGULARISATIONS), strict=True):
                    target[batch, :, y, x] += weight * result
    return [target / weights for target in summed]


def wiener(blurred: Tensor, kernels: Tensor, regularisations: Sequence[float]) -> Iterator[Tensor]:
    """Minimises |kernel * x - blurred|^2 + regularisation |gradient of x|^2; one result per regularisation.

    blurred  [B, 3, H, W]  about [-1, 1]; sides longer than the continued border
    kernels  [B, k, k]     k odd, sum 1
    yields   [B, 3, H, W]  in [-1.5, 1.5]

    The border is reflected, and faded into its own blurred version, which makes the whole periodic (edge tapering).
    """
    wide = F.pad(blurred, (_BORDER,) * 4, mode="reflect")
    height, width = wide.shape[2:]
    transfer = transfer_function(kernels, height, width)[:, None]
    taper = torch.outer(_taper(height), _taper(width)).to(wide.device)
    circular = torch.fft.irfft2(torch.fft.rfft2(wide) * transfer, s=(height, width))
    spectrum = transfer.conj() * torch.fft.rfft2(torch.lerp(circular, wide, taper))
    power, smoothness = transfer.abs().square(), gradient_power(height, width, device=wide.device) + _FLAT
    for regularisation in regularisations:
        sharp = torch.fft.irfft2(spectrum / (power + regularisation * smoothness), s=(height, width))
        yield sharp[..., _BORDER:-_BORDER, _BORDER:-_BORDER].clamp(-1.5, 1.5)


def _batches(pictures: Tensor) -> list[slice]:
    """One picture at a time on CPUs, where it is as fast, and stays in the cache.

    Rounding of transforms depends on the number of pictures there, and an estimate amplifies it: so a picture's result
    does not depend on its batch, or on the number of ranks.
    """
    at_once = 1 if pictures.device.type == "cpu" else len(pictures)
    return [slice(nth, nth + at_once) for nth in range(0, len(pictures), at_once)]


def _taper(length: int) -> Tensor:
    """[length]: 0 at the ends, 1 from `_BORDER` pixels on, half a cosine between."""
    place = torch.arange(length) + 0.5
    return (1 - torch.cos(math.pi * (torch.minimum(place, length - place) / _BORDER).clamp(max=1))) / 2


def _spans(length: int) -> list[slice]:
    """Evenly spread windows that overlap by at least a ramp."""
    count = max(1, math.ceil((length - _RAMP) / (_WINDOW - _RAMP)))
    side = min(_WINDOW, length)
    starts = [(length - side) * nth // max(1, count - 1) for nth in range(count)]
    return [slice(start, start + side) for start in starts]


def _ramp(span: slice, length: int) -> Tensor:
    """Weights of a window's pixels: lower where a neighbour takes over, never 0."""
    place = torch.arange(span.start, span.stop) + 0.5
    rise = torch.ones(len(place)) if span.start == 0 else ((place - span.start) / _RAMP).clamp(max=1)
    fall = torch.ones(len(place)) if span.stop == length else ((span.stop - place) / _RAMP).clamp(max=1)
    return rise * fall
