"""NAFNet (arXiv:2204.04676), with the tensors' names and shapes of github.com/megvii-research/NAFNet.

Published weights therefore load as they are (deblur/models/pytorch_weights.py).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deblur.models.layers import crop, pad


class NAFNet(nn.Module):
    """NAFBlocks on as many levels as `encoder_blocks` has, and `middle_blocks` below; skips are added.

    Level n has `filters` (the paper's width) * 2**n channels at 1 / 2**n of the resolution. With blocks 1, 1, 1, 28 /
    1 / 1, 1, 1, 1 17,111,907 parameters for 32 filters, and 67,888,835 for 64. Initial weights are torch's defaults.

    In eval mode channel attention averages over windows 1.5 times the training crop (arXiv:2112.04491), as for the
    published GoPro scores: means over a whole photograph are not what the network was trained on. Windows also bring
    tiles close to the whole picture: 89 dB PSNR between both instead of 72 dB, for a small one and tiles of 512 pixels.
    They double the time of a small network on CPUs.
    """

    def __init__(
        self,
        *,
        filters: int,
        encoder_blocks: Sequence[int],
        middle_blocks: int,
        decoder_blocks: Sequence[int],
        train_crop: int,
    ) -> None:
        super().__init__()
        levels = range(len(encoder_blocks) + 1)
        widths = [filters * 2**level for level in levels]
        windows = [max(1, train_crop * 3 // 2 // 2**level) for level in levels]
        self.intro = nn.Conv2d(3, filters, 3, padding=1)
        self.encoders = nn.ModuleList(map(_blocks, encoder_blocks, widths[:-1], windows[:-1]))
        self.downs = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, 2) for width in widths[:-1])
        self.middle_blks = _blocks(middle_blocks, widths[-1], windows[-1])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)) for width in widths[:0:-1]
        )
        self.decoders = nn.ModuleList(map(_blocks, decoder_blocks, widths[-2::-1], windows[-2::-1]))
        self.ending = nn.Conv2d(filters, 3, 3, padding=1)

    def forward(self, blurred: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the same size, about the same range."""
        # The network's own range is [0, 1], and it pads with black.
        x = self.intro(pad((blurred + 1) / 2, multiple=2 ** len(self.downs), mode="constant"))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        return blurred + 2 * crop(self.ending(x), blurred)


class NAFBlock(nn.Module):
    """Depthwise convolution with channel attention, then a feed-forward part (figure 3c), [B, channels, H, W].

    beta and gamma are 0 initially, which makes a new block the identity.
    """

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        c = channels
        self.conv1 = nn.Conv2d(c, 2 * c, 1)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3 = nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(LocalMean(window), nn.Conv2d(c, c, 1))  # simplified channel attention
        self.conv4 = nn.Conv2d(c, 2 * c, 1)
        self.conv5 = nn.Conv2d(c, c, 1)
        self.norm1 = LayerNorm2d(c)
        self.norm2 = LayerNorm2d(c)
        self.beta = nn.Parameter(torch.zeros(1, c, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        gated = _simple_gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.beta * self.conv3(gated * self.sca(gated))
        return x + self.gamma * self.conv5(_simple_gate(self.conv4(self.norm2(x))))


class LayerNorm2d(nn.Module):
    """Normalises each pixel of [B, channels, H, W] over its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # torch's kernel accumulates in float32 whatever autocast does; it wants channels last.
        channels_last = x.permute(0, 2, 3, 1)
        return F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, eps=1e-6).permute(0, 3, 1, 2)


class LocalMean(nn.Module):
    """Mean of [B, C, H, W] over the window x window pixels around each one, moved inside the picture at its border.

    In training, and along an axis no longer than the window, it is the whole picture's, of size 1.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x.mean((2, 3), keepdim=True)
        return self._along(self._along(x, 2), 3)

    def _along(self, x: Tensor, dim: int) -> Tensor:
        length = x.shape[dim]
        if length <= self.window:
            return x.mean(dim, keepdim=True)
        # Axis by axis, float32 sums stay short enough to be exact to 1e-5; bfloat16's would not.
        sums = x.cumsum(dim, dtype=torch.promote_types(x.dtype, torch.float32))
        sums = F.pad(sums, (1, 0) if dim == 3 else (0, 0, 1, 0))
        start = (torch.arange(length, device=x.device) - (self.window - 1) // 2).clamp(0, length - self.window)
        means = (sums.index_select(dim, start + self.window) - sums.index_select(dim, start)) / self.window
        return means.to(x.dtype)


def _simple_gate(x: Tensor) -> Tensor:
    """[B, 2C, H, W] -> [B, C, H, W]: the product of both halves, NAFNet's only nonlinearity besides the attention."""
    first, second = x.chunk(2, dim=1)
    return first * second


def _blocks(count: int, channels: int, window: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(channels, window) for _ in range(count)))
