"""A convolution whose second derivative is as fast as its first, for critics with a gradient penalty.

torch writes the second derivative's share for the weights as a convolution with the picture's own gradient for a
kernel, which no library is fast at. Here it is what it is by its formula: the gradient of weights of a convolution of
other tensors. After conv2d_gradfix of StyleGAN2-ADA (github.com/NVlabs/stylegan2-ada-pytorch, arXiv:2006.06676).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Pair = tuple[int, int]
_PICTURES, _WEIGHT, _WEIGHT_AND_BIAS = (True, False, False), (False, True, False), (False, True, True)


class PenalisedConv2d(nn.Conv2d):
    """nn.Conv2d with a bias, and with neither groups nor dilation.

    Where a graph of the gradient is asked for (create_graph), gradients reach the pictures alone, as a penalty on them
    needs; weights take part in every backward without one.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, out, kernel, stride, padding)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], in autocast's dtype where that is on."""
        tensors = [pictures, self.weight, self.bias]
        kind = pictures.device.type
        if torch.is_autocast_enabled(kind):
            tensors = [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]
        return _Convolution.apply(*tensors, self.stride, self.padding)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pictures: Tensor, weight: Tensor, bias: Tensor, stride: _Pair, padding: _Pair) -> Tensor:
        ctx.save_for_backward(pictures, weight)
        ctx.where = stride, padding
        return F.conv2d(pictures, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        pictures, weight = ctx.saved_tensors
        to_pictures = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_pictures = _PictureGradient.apply(slope, weight, pictures, *ctx.where)
        if ctx.needs_input_grad[1] and not torch.is_grad_enabled():  # enabled is it where create_graph is
            _, to_weight, to_bias = _gradients(slope, pictures, weight, *ctx.where, _WEIGHT_AND_BIAS)
        return to_pictures, to_weight, to_bias, None, None


class _PictureGradient(torch.autograd.Function):
    """The transposed convolution; linear in `slope` and in `weight`. Of `pictures` it needs the shape."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, weight: Tensor, pictures: Tensor, stride: _Pair, padding: _Pair) -> Tensor:
        ctx.save_for_backward(slope, weight)
        ctx.where = stride, padding
        return _gradients(slope, pictures, weight, stride, padding, _PICTURES)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        slope, weight = ctx.saved_tensors
        to_slope = to_weight = None
        if ctx.needs_input_grad[0]:
            to_slope = F.conv2d(direction, weight, None, *ctx.where)
        if ctx.needs_input_grad[1]:
            to_weight = _gradients(slope, direction, weight, *ctx.where, _WEIGHT)[1]
        return to_slope, to_weight, None, None, None


def _gradients(
    slope: Tensor, pictures: Tensor, weight: Tensor, stride: _Pair, padding: _Pair, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of a convolution's (pictures, weight, bias) that are wanted, from its output's."""
    return torch.ops.aten.convolution_backward(
        slope, pictures, weight, weight.shape[:1], stride, padding, (1, 1), False, (0, 0), 1, wanted
    )
