"""MAXIM-3S: a U-Net of MLPs that mix channels, blocks and a grid of pixels, in three stages (arXiv:2201.02973).

Follows the authors' flax code (github.com/google-research/maxim, Apache-2.0) to the value, so that their published
weights can be used: see deblur/models/maxim_package.py. Sections and figures below are the paper's. Features are
[B, H, W, C], as there; every block keeps H and W unless its docstring says otherwise.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 64  # three halvings, then 8 x 8 blocks
LEVELS = 3
_GROUPS = 2  # of multi-axis MLP and channel attention, in every encoder, decoder and bottleneck
_BOTTLENECKS = 2
_SIDES = (16, 16, 8, 8)  # of blocks and of the grid: at each level, and in the bottleneck


class Maxim(nn.Module):
    """Three U-Nets, each fed by the features of the previous one (section 3.1, figure 2); 22,207,605 parameters.

    Only the last picture at full scale is returned: the original's loss also has the two smaller ones and those of the
    earlier stages.

    Not local: the grid MLPs mix 16 x 16 cells of the whole picture, in a tile those of the tile. On a 1280x720 frame of
    GOPRO, tiles of 768 and 512 pixels (both multiples of 64) are 46 and 40 dB PSNR from the whole frame. They are not
    worse: training saw small crops (see arXiv:2112.04491), and on four frames tiles of 512 restore to 33.76 dB, whole
    frames to 32.88. A whole frame needs 4.2 GB of memory.
    """

    max_pixels = 1024 * 1024
    """Larger pictures are restored in tiles."""

    def __init__(self, *, filters: int = 32, stages: int = 3) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(filters, first=stage == 0, last=stage == stages - 1) for stage in range(stages)
        )
        _initialise(self)

    def forward(self, blurred: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the same size, about the same range."""
        height, width = blurred.shape[-2:]
        picture, top, left = _pad(blurred * 0.5 + 0.5)
        picture = picture.permute(0, 2, 3, 1).contiguous()
        pictures = [picture, picture[:, 1::2, 1::2], picture[:, 2::4, 2::4]]  # the pixels that jax.image.resize picks
        previous: list[tuple[Tensor, Tensor]] = []
        for stage in self.stages:
            previous = stage(pictures, previous)
        restored, _ = previous[0]
        return restored.permute(0, 3, 1, 2)[..., top : top + height, left : left + width] * 2 - 1


class Stage(nn.Module):
    """One U-Net with three levels: `filters` * 2**level channels at 1 / 2**level of the resolution (figure 2)."""

    def __init__(self, filters: int, *, first: bool, last: bool) -> None:
        super().__init__()
        widths = [filters * 2**level for level in range(LEVELS)]
        levels = list(zip(widths, _SIDES, strict=False))
        below = [*widths[1:], widths[-1]]  # the channels that come up from the level below
        self.inputs = nn.ModuleList(Conv2d(3, c, 3, padding=1) for c in widths)
        self.fusions = nn.ModuleList(() if first else (CrossGating(c, c, c, side) for c, side in levels))
        self.encoders = nn.ModuleList(
            Groups(above + c, c, side) for above, (c, side) in zip([filters, *widths], levels, strict=False)
        )
        self.recalls = nn.ModuleList(() if first else (CrossGating(c, c, c, side) for c, side in levels))
        self.downs = nn.ModuleList(Conv2d(c, c, 4, stride=2, padding=1) for c in widths)
        self.bottlenecks = nn.Sequential(
            *(Groups(widths[-1], widths[-1], _SIDES[-1], convolve=False) for _ in range(_BOTTLENECKS))
        )
        self.bridges = nn.ModuleList(MultiScale(widths, level) for level in range(LEVELS))
        self.ups = nn.ModuleList(ConvTranspose2d(lower, c, 2, 2) for lower, c in zip(below, widths, strict=True))
        self.gates = nn.ModuleList(CrossGating(LEVELS * c, c, c, side) for c, side in levels)
        self.skips = nn.ModuleList(MultiScale(widths, level) for level in range(LEVELS))
        self.decoder_ups = nn.ModuleList(
            ConvTranspose2d(lower, c, 2, 2) for lower, c in zip(below, widths, strict=True)
        )
        self.decoders = nn.ModuleList(Groups((1 + LEVELS) * c, c, side) for c, side in levels)
        self.supervisions = nn.ModuleList(() if last else (SupervisedAttention(c) for c in widths))
        self.last = Conv2d(filters, 3, 3, padding=1) if last else None

    def forward(self, pictures: list[Tensor], previous: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The features for the next stage; of the last stage [(restored picture, its features)].

        pictures  [B, H / 2**level, W / 2**level, 3] in [0, 1]
        previous  for each level the supervised features of the previous stage, and the sum of its encoder's and its
                  decoder's; empty in the first stage
        """
        encoded, x = self._encode(pictures, previous)
        del previous
        decoded = self._decode(self._gate(encoded, x), x)
        if self.last is not None:
            return [(pictures[0] + self.last(decoded[0]), decoded[0])]
        attended = (s(x, picture) for s, x, picture in zip(self.supervisions, decoded, pictures, strict=True))
        return [(a, e + d) for a, e, d in zip(attended, encoded, decoded, strict=True)]

    def _encode(self, pictures: list[Tensor], previous: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor]:
        """The features of each level, finest first, and those below the last level."""
        inputs = [convolve(picture) for convolve, picture in zip(self.inputs, pictures, strict=True)]
        if previous:
            inputs = [
                fuse(x, attended)[0] for fuse, x, (attended, _) in zip(self.fusions, inputs, previous, strict=True)
            ]
        x, encoded = inputs[0], []
        for level, (encoder, down) in enumerate(zip(self.encoders, self.downs, strict=True)):
            x = encoder(torch.cat([x, inputs[level]], dim=-1))
            if previous:
                x, _ = self.recalls[level](x, previous[level][1])
            encoded.append(x)
            x = down(x)
        return encoded, self.bottlenecks(x)

    def _gate(self, encoded: list[Tensor], x: Tensor) -> list[Tensor]:
        """The skip connections of each level, finest first: cross-gated from the bottleneck upwards (section 3.3)."""
        skips: list[Tensor] = []
        for level in reversed(range(LEVELS)):
            skip, x = self.gates[level](torch.cat(self.bridges[level](encoded), dim=-1), self.ups[level](x))
            skips.insert(0, skip)
        return skips

    def _decode(self, skips: list[Tensor], x: Tensor) -> list[Tensor]:
        """The features of each level, finest first."""
        decoded: list[Tensor] = []
        for level in reversed(range(LEVELS)):
            coarsest_first = reversed(self.skips[level](skips))
            x = self.decoders[level](torch.cat([self.decoder_ups[level](x), *coarsest_first], dim=-1))
            decoded.insert(0, x)
        return decoded


class Groups(nn.Module):
    """An encoder, decoder or bottleneck, [B, H, W, before] -> [B, H, W, channels] (figure 2 b and c).

    `convolve`: channel attention after convolutions, else after an MLP, as in the bottleneck.
    """

    def __init__(self, before: int, channels: int, side: int, *, convolve: bool = True) -> None:
        super().__init__()
        self.project = nn.Linear(before, channels)
        self.groups = nn.Sequential()
        for _ in range(_GROUPS):
            self.groups.append(MultiAxisMlp(channels, side))
            self.groups.append(ConvolutionAttention(channels) if convolve else MlpAttention(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        changed: Tensor = x + self.groups(x)
        return changed


class MultiAxisMlp(nn.Module):
    """Half of the channels are mixed over a grid, half in blocks; residual, [B, H, W, C] (section 3.2, figure 3)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.grid = GatedMlp(channels, side, over="grid")
        self.block = GatedMlp(channels, side, over="block")
        self.project = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        u, v = _gelu(self.expand(self.norm(x))).chunk(2, dim=-1)
        changed: Tensor = x + self.project(torch.cat([self.grid(u), self.block(v)], dim=-1))
        return changed


class GatedMlp(nn.Module):
    """gMLP (arXiv:2105.08050) over a grid or in blocks; residual, [B, H, W, C] (section 3.2)."""

    def __init__(self, channels: int, side: int, over: Literal["grid", "block"]) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.gate_norm = _norm(channels)
        self.mix = SpatialLinear(side, over)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        u, v = _gelu(self.expand(self.norm(x))).chunk(2, dim=-1)
        changed: Tensor = x + self.project(u * (self.mix(self.gate_norm(v)) + 1))
        return changed


class SpatialLinear(nn.Linear):
    """A dense layer over side x side pixels, the same for every channel, [B, H, W, C] (section 3.2, figure 3).

    over   "block": all pixels of each block of side x side neighbours, "grid": the pixels that have the same place in
           each of the side x side cells of the whole picture
    start  initial value of the bias
    """

    def __init__(self, side: int, over: Literal["grid", "block"], start: float = 0.0) -> None:
        super().__init__(side**2, side**2)
        self.side, self.over, self.start = side, over, start

    def forward(self, x: Tensor) -> Tensor:
        height, width, n = *x.shape[1:3], self.side
        if self.over == "grid":
            cells, last, back = [n, height // n, n, width // n], (0, 2, 4, 5, 1, 3), (0, 4, 1, 5, 2, 3)
        else:
            cells, last, back = [height // n, n, width // n, n], (0, 1, 3, 5, 2, 4), (0, 1, 4, 2, 5, 3)
        mixed = x.reshape(len(x), *cells, -1).permute(last).flatten(4)  # [B, ., ., C, side**2]
        return super().forward(mixed).unflatten(4, (n, n)).permute(back).reshape(x.shape)


class SpatialGate(nn.Module):
    """Weights that gate other features, from both kinds of mixing, [B, H, W, C] (section 3.3)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.expand = nn.Linear(channels, 2 * channels)
        self.grid = SpatialLinear(side, "grid", start=1.0)
        self.block = SpatialLinear(side, "block", start=1.0)
        self.project = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        u, v = _gelu(self.expand(self.norm(x))).chunk(2, dim=-1)
        weights: Tensor = self.project(torch.cat([self.grid(u), self.block(v)], dim=-1))
        return weights


class CrossGating(nn.Module):
    """Two features gate each other (section 3.3, figure 4): the cheap counterpart of cross-attention."""

    def __init__(self, x_channels: int, y_channels: int, channels: int, side: int) -> None:
        super().__init__()
        self.x, self.y = GatedBranch(x_channels, channels, side), GatedBranch(y_channels, channels, side)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, x_channels], [B, H, W, y_channels] -> both [B, H, W, channels]."""
        (x, own_x, gate_x), (y, own_y, gate_y) = self.x(x), self.y(y)
        y = y + self.y.project(own_y * gate_x)
        return x + y + self.x.project(own_x * gate_y), y


class GatedBranch(nn.Module):
    """The layers of one of the two features in `CrossGating`."""

    def __init__(self, before: int, channels: int, side: int) -> None:
        super().__init__()
        self.first = nn.Linear(before, channels)
        self.norm = _norm(channels)
        self.expand = nn.Linear(channels, channels)
        self.gate = SpatialGate(channels, side)
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, H, W, before] -> shortcut, features, weights that gate the other branch, each [B, H, W, channels]."""
        x = self.first(x)
        own = _gelu(self.expand(self.norm(x)))
        return x, own, self.gate(own)


class ChannelAttention(nn.Module):
    """Scales channels by weights from their means, [B, H, W, C] (arXiv:1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(self.squeeze(x.mean(dim=(1, 2), keepdim=True)).relu()))


class ConvolutionAttention(nn.Module):
    """Two 3x3 convolutions and channel attention; residual, [B, H, W, C] (RCAB in figure 2, arXiv:1807.02758)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.first, self.second = Conv2d(channels, channels, 3, padding=1), Conv2d(channels, channels, 3, padding=1)
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.attention(self.second(F.leaky_relu(self.first(self.norm(x)), 0.2)))
        return changed


class MlpAttention(nn.Module):
    """An MLP over channels and channel attention; residual, [B, H, W, C] (RDCAB in figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.first, self.second = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.attention(self.second(_gelu(self.first(self.norm(x)))))
        return changed


class SupervisedAttention(nn.Module):
    """Features weighted by the picture that they restore, [B, H, W, C] (section 3.4; SAM of arXiv:2102.02808)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features, self.restore = Conv2d(channels, channels, 3, padding=1), Conv2d(channels, 3, 3, padding=1)
        self.attend = Conv2d(3, channels, 3, padding=1)

    def forward(self, x: Tensor, picture: Tensor) -> Tensor:
        """picture: [B, H, W, 3] in [0, 1]."""
        attention = torch.sigmoid(self.attend(picture + self.restore(x)))
        attended: Tensor = x + self.features(x) * attention
        return attended


class MultiScale(nn.Module):
    """Features of all levels with the resolution and the channels of one of them (figure 2)."""

    def __init__(self, widths: list[int], level: int) -> None:
        super().__init__()
        self.level = level
        self.projections = nn.ModuleList(nn.Linear(width, widths[level]) for width in widths)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """[B, H / 2**level, W / 2**level, C * 2**level] -> as many [B, H', W', C'], both finest first."""
        resized = []
        for other, (project, x) in enumerate(zip(self.projections, levels, strict=True)):
            # Both are linear, so their order does not matter: the one that leaves fewer values is first.
            scale = 2.0 ** (other - self.level)
            resized.append(_resize(project(x), scale) if scale > 1 else project(_resize(x, scale)))
        return resized


class Conv2d(nn.Conv2d):
    """nn.Conv2d of [B, H, W, C]: without a copy, as these are torch's channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d of [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _resize(x: Tensor, scale: float) -> Tensor:
    """[B, H, W, C], bilinear; with antialiasing, as in jax.image.resize, where it becomes smaller."""
    if scale == 1:
        return x
    with torch.autocast(x.device.type, enabled=False):  # the antialiased resize has no bfloat16 on CPUs
        resized = F.interpolate(x.float().permute(0, 3, 1, 2), scale_factor=scale, mode="bilinear", antialias=scale < 1)
    return resized.permute(0, 2, 3, 1)


def _pad(pictures: Tensor) -> tuple[Tensor, int, int]:
    """[B, 3, H, W] with H and W padded to multiples of 64 on both sides; the rows and columns added before them.

    Reflected as in the original's evaluation, or replicated where the picture is too small to be reflected.
    """
    before = []
    for axis, side in ((1, pictures.shape[-1]), (2, pictures.shape[-2])):
        added = -side % MULTIPLE
        ends = added // 2, added - added // 2
        before.append(ends[0])
        if added:
            padding = (*ends, 0, 0) if axis == 1 else (0, 0, *ends)
            pictures = F.pad(pictures, padding, mode="reflect" if ends[1] < side else "replicate")
    return pictures, before[1], before[0]


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6)  # flax's default


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")  # flax's default


def _initialise(network: nn.Module) -> None:
    """The original's: variance 1 / fan-in, small weights over pixels, and gates that start open."""
    for module in network.modules():
        if isinstance(module, SpatialLinear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.constant_(module.bias, module.start)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.weight.shape[0] if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
            nn.init.normal_(module.weight, std=inputs**-0.5)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
