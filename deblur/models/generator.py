"""The generators of DeblurGAN and the article: blurred pictures to restored ones of the same size.

Pictures are RGB [B, 3, H, W] in [-1, 1]; H and W are at least 1. Both networks predict a residual to the blurred
picture.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from deblur.models.layers import Dropout, Norm, ReflectionPad2d, crop, initialise, normalise, pad

Upsampling = Literal["transposed", "resize"]
Output = Literal["clamp", "mean"]


class ResNetGenerator(nn.Module):
    """Two downsamplings, residual blocks, two upsamplings (arXiv:1711.07064, figure 3, after arXiv:1603.08155).

    Convolutions keep their bias before a norm: 11,378,179 parameters with 9 blocks, 64 filters and InstanceNorm.
    """

    def __init__(
        self, *, filters: int = 64, blocks: int = 9, norm: Norm, dropout: float, upsampling: Upsampling, output: Output
    ) -> None:
        super().__init__()
        f = filters
        self.first = nn.Sequential(ReflectionPad2d(3), nn.Conv2d(3, f, 7), normalise(norm, f), nn.ReLU(True))
        self.down1 = nn.Sequential(nn.Conv2d(f, 2 * f, 3, 2, 1), normalise(norm, 2 * f), nn.ReLU(True))
        self.down2 = nn.Sequential(nn.Conv2d(2 * f, 4 * f, 3, 2, 1), normalise(norm, 4 * f), nn.ReLU(True))
        self.blocks = nn.Sequential(*(ResidualBlock(4 * f, norm, dropout) for _ in range(blocks)))
        self.up2 = nn.Sequential(_doubling(upsampling, 4 * f, 2 * f, 3), normalise(norm, 2 * f), nn.ReLU(True))
        self.up1 = nn.Sequential(_doubling(upsampling, 2 * f, f, 3), normalise(norm, f), nn.ReLU(True))
        self.last = nn.Sequential(ReflectionPad2d(3), nn.Conv2d(f, 3, 7), nn.Tanh())
        self.output: Output = output
        initialise(self, he=norm == "none")
        if norm == "none":
            self._scale_initial_residuals()

    @torch.no_grad()
    def _scale_initial_residuals(self) -> None:
        """Starts near the identity: unnormalised sums would start, and often stay, far from any picture."""
        for block in self.blocks:
            block.get_submodule("change")[-2].weight.mul_(0.1)  # type: ignore[index]  # a Sequential
        self.last[1].get_parameter("weight").mul_(0.01)

    def forward(self, blurred: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the same."""
        # Two halvings must leave 2x2 pixels, the minimum for reflection padding and InstanceNorm.
        x = pad(blurred, multiple=4, smallest=8)  # [B, 3, H', W']
        x = self.first(x)  #                         [B, f, H', W']
        x = self.down1(x)  #                         [B, 2f, H'/2, W'/2]
        x = self.down2(x)  #                         [B, 4f, H'/4, W'/4]
        x = self.blocks(x)
        x = self.up2(x)  #                           [B, 2f, H'/2, W'/2]
        x = self.up1(x)  #                           [B, f, H', W']
        x = self.last(x)  #                          [B, 3, H', W'] in (-1, 1)
        return _OUTPUTS[self.output](crop(x, blurred), blurred)


class ResidualBlock(nn.Module):
    """x + two convolutions of x, [B, channels, H, W], H and W at least 2; no ReLU after the sum (as DeblurGAN)."""

    def __init__(self, channels: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.change = nn.Sequential(
            ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            normalise(norm, channels),
            nn.ReLU(True),
            *_dropout(dropout),
            ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            normalise(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.change(x)
        return changed


class UNetGenerator(nn.Module):
    """pix2pix' U-Net (arXiv:1611.07004, section 6.1.1): `depth` halvings, as many doublings, skip connections.

    As in pix2pix' PyTorch code convolutions before BatchNorm have no bias (54,413,955 parameters at depth 8), and only
    the deep doublings have dropout. H and W are padded to multiples of 2**depth.
    """

    def __init__(
        self,
        *,
        filters: int = 64,
        depth: int = 8,
        norm: Norm,
        dropout: float,
        upsampling: Upsampling,
        output: Output,
    ) -> None:
        super().__init__()
        widths = [filters * min(2**level, 8) for level in range(depth)]  # channels at H/2, H/4, ... H/2**depth
        bias = norm != "batch"
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            inner, outer = widths[level], widths[level - 1] if level else 3
            outermost, innermost = level == 0, level == depth - 1
            # At the bottom, 1x1 pixels have no variance; the first layer gets the picture as it is.
            down_norm = "none" if outermost or innermost else norm
            before = [] if outermost else [nn.LeakyReLU(0.2)]  # not in place: the skip connection uses the same tensor
            self.downs.append(
                nn.Sequential(*before, nn.Conv2d(outer, inner, 4, 2, 1, bias=bias), normalise(down_norm, inner))
            )
            joined = inner if innermost else 2 * inner
            after = [nn.Tanh()] if outermost else [normalise(norm, outer)]
            if not innermost and inner == outer:
                after += _dropout(dropout)
            up = _doubling(upsampling, joined, outer, 4, bias or outermost)
            self.ups.append(nn.Sequential(nn.ReLU(), up, *after))
        self.output: Output = output
        initialise(self, he=norm == "none")

    def forward(self, blurred: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the same."""
        x = pad(blurred, multiple=2 ** len(self.downs), smallest=1)
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = self.ups[-1](skips.pop())
        for up in reversed(self.ups[:-1]):
            x = up(torch.cat([x, skips.pop()], dim=1))
        return _OUTPUTS[self.output](crop(x, blurred), blurred)


# (output of the last tanh, [B, 3, H, W] in (-1, 1); blurred picture) -> restored picture.
_OUTPUTS: dict[Output, Callable[[Tensor, Tensor], Tensor]] = {
    "clamp": lambda change, blurred: (change + blurred).clamp(-1, 1),
    "mean": lambda change, blurred: (change + blurred) / 2,
}


def _doubling(upsampling: Upsampling, channels: int, out: int, kernel: int, bias: bool = True) -> nn.Module:
    """[B, channels, H, W] -> [B, out, 2H, 2W]; `kernel` (3 or 4) is the transposed convolution's.

    Resize and convolve avoids checkerboard artefacts (Odena et al. 2016, doi:10.23915/distill.00003).
    """
    if upsampling == "resize":
        return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, out, 3, padding=1, bias=bias))
    return nn.ConvTranspose2d(channels, out, kernel, 2, 1, output_padding=kernel % 2, bias=bias)


def _dropout(share: float) -> list[nn.Module]:
    return [Dropout(share)] if share else []
