"""A small U-Net of plain 3x3 convolutions, for CPUs; its cost and quality are in benchmarks/README.md.

Like the U-Nets of plain residual blocks in NAFNet's ablation (arXiv:2204.04676, section 3) without normalisation, on
half-resolution pixels (pixel-unshuffle, arXiv:1609.05158), so that no convolution runs at full resolution.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from deblur.models.layers import crop, pad


class FastUNet(nn.Module):
    """Residual blocks on as many levels as `encoder_blocks` has, and `middle_blocks` below; skips are added.

    Level n has `filters` * 2**n channels at 1 / 2**(n + 1) of the resolution. 923,772 parameters with 24 filters and
    blocks 2, 2 / 4 / 2, 2. Starts as the identity. Local: a pixel depends on its neighbourhood only.
    """

    def __init__(
        self,
        *,
        filters: int,
        encoder_blocks: Sequence[int],
        middle_blocks: int,
        decoder_blocks: Sequence[int],
        channels: int = 3,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(len(encoder_blocks) + 1)]
        self.first = nn.Conv2d(4 * channels, filters, 3, padding=1)
        self.encoders = nn.ModuleList(_blocks(n, width) for n, width in zip(encoder_blocks, widths, strict=False))
        self.downs = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, 2) for width in widths[:-1])
        self.middle = _blocks(middle_blocks, widths[-1])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in reversed(widths[:-1]))
        self.decoders = nn.ModuleList(
            _blocks(n, width) for n, width in zip(decoder_blocks, reversed(widths[:-1]), strict=True)
        )
        self.last = nn.Conv2d(filters, 4 * out_channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, blurred: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the same size, about the same range."""
        return blurred + self.change(blurred)

    def change(self, pictures: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, out_channels, H, W]; 0 at the start."""
        x = self.first(F.pixel_unshuffle(pad(pictures, multiple=2 ** (len(self.downs) + 1)), 2))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        return crop(F.pixel_shuffle(self.last(x), 2), pictures)


class _Block(nn.Module):
    """x + two convolutions of x, [B, channels, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(True), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.change(x)
        return changed


def _blocks(count: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(channels) for _ in range(count)))
