"""A convolution whose double backward is as fast as its backward, for critics with a gradient penalty.

torch computes the weights' part of the double backward as a convolution with a picture-sized kernel, which no library
does fast. Here it is computed as the equivalent weight gradient of another convolution. After conv2d_gradfix of
StyleGAN2-ADA (github.com/NVlabs/stylegan2-ada-pytorch, arXiv:2006.06676).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Pair = tuple[int, int]
# Which gradients of (pictures, weight, bias) to compute.
_PICTURES, _WEIGHT, _WEIGHT_AND_BIAS = (True, False, False), (False, True, False), (False, True, True)


class PenalisedConv2d(nn.Conv2d):
    """nn.Conv2d with a bias, without groups or dilation.

    With create_graph, gradients flow to the pictures only, as the penalty needs; weights get gradients in every
    backward without it.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, out, kernel, stride, padding)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], in autocast's dtype if that is enabled."""
        assert self.bias is not None
        tensors = [pictures, self.weight, self.bias]
        kind = pictures.device.type
        if torch.is_autocast_enabled(kind):
            tensors = [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]
        output: Tensor = _Convolution.apply(*tensors, self.stride, self.padding)
        return output


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
        if ctx.needs_input_grad[1] and not torch.is_grad_enabled():  # enabled by create_graph
            _, to_weight, to_bias = _gradients((slope, pictures, weight), ctx.where, _WEIGHT_AND_BIAS)
        return to_pictures, to_weight, to_bias, None, None


class _PictureGradient(torch.autograd.Function):
    """The transposed convolution; linear in `slope` and in `weight`. Only the shape of `pictures` matters."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, weight: Tensor, pictures: Tensor, stride: _Pair, padding: _Pair) -> Tensor:
        ctx.save_for_backward(slope, weight)
        ctx.where = stride, padding
        return _gradients((slope, pictures, weight), ctx.where, _PICTURES)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        slope, weight = ctx.saved_tensors
        to_slope = to_weight = None
        if ctx.needs_input_grad[0]:
            to_slope = F.conv2d(direction, weight, None, *ctx.where)
        if ctx.needs_input_grad[1]:
            to_weight = _gradients((slope, direction, weight), ctx.where, _WEIGHT)[1]
        return to_slope, to_weight, None, None, None


def _gradients(
    tensors: tuple[Tensor, Tensor, Tensor], where: tuple[_Pair, _Pair], mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in the mask, from (output gradient, pictures, weight) and (stride, padding)."""
    bias_shape, dilation, transposed, output_padding, groups = tensors[2].shape[:1], (1, 1), False, (0, 0), 1
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        *tensors, bias_shape, *where, dilation, transposed, output_padding, groups, mask
    )
    return found
