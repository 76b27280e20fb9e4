"""Runs pieces of pictures through a generator in batches, with the InstanceNorm statistics of their whole picture.

InstanceNorm normalises by statistics of its whole input. Per-tile statistics would give every tile another contrast, so
tiles use those of their picture, measured by one pass over non-overlapping tiles. They belong to the piece, not to the
network, so that pieces of different pictures can share a batch.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deblur.models.pixels import from_uint8

MAX_PIXELS = 4_000_000  # the paper's generator needs about 1 KB of memory per pixel


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A picture or a part of one, to be restored or measured."""

    pixels: np.ndarray
    """[h, w, 3] uint8 RGB."""
    statistics: Tensor | None = None
    """[2, C] float32: mean and variance at all InstanceNorms, concatenated; None for the piece's own."""
    measured: bool = False
    """Measure statistics instead of restoring."""

    @property
    def kind(self) -> tuple[int, int, bool, bool]:
        """Pieces of one kind can share a batch."""
        height, width = self.pixels.shape[:2]
        return height, width, self.statistics is not None, self.measured

    @property
    def num_pixels(self) -> int:
        """Height times width."""
        height, width = self.pixels.shape[:2]
        return int(height * width)


class PieceRunner:
    """Runs batches of pieces through a generator. Not thread-safe."""

    def __init__(self, generator: nn.Module, device: torch.device | str) -> None:
        """`generator` in eval mode, on the device; it is not modified, and its weights are shared."""
        tensors = [*generator.parameters(), *generator.buffers()]
        self._generator: nn.Module = copy.deepcopy(generator, {id(tensor): tensor for tensor in tensors})
        self._device = device
        self._norms: list[_PictureNorm] = []
        for name, module in list(self._generator.named_modules()):
            if isinstance(module, nn.InstanceNorm2d):
                norm = _PictureNorm(module)
                if name:
                    self._generator.set_submodule(name, norm)
                else:
                    self._generator = norm
                self._norms.append(norm)
        self.num_channels = sum(norm.own.num_features for norm in self._norms)

    @property
    def has_statistics(self) -> bool:
        """Whether tiles need the statistics of their whole picture."""
        return self.num_channels > 0

    @property
    def max_pixels(self) -> int:
        """Largest picture that is restored at once; larger ones are restored in tiles."""
        return int(getattr(self._generator, "max_pixels", MAX_PIXELS))

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Results of pieces of one kind, in their order, on the CPU. Raises torch.OutOfMemoryError.

        [3, h, w]  restored: RGB in [-1, 1], float32
        [3, C]     measured: sums of values, of squares, and of ones, at all InstanceNorms, float64
        """
        (kind,) = {piece.kind for piece in pieces}
        *_, measured = kind
        pictures = torch.from_numpy(np.stack([piece.pixels for piece in pieces])).to(self._device)
        given = [piece.statistics for piece in pieces if piece.statistics is not None]
        self._set_statistics(torch.stack(given) if given else None, measured)
        try:
            restored = self._generator(from_uint8(pictures.permute(0, 3, 1, 2)))
            if measured:
                return list(torch.cat([norm.sums for norm in self._norms if norm.sums is not None], dim=2).cpu())
            return list(restored.float().cpu())
        finally:
            self._set_statistics(None, False)

    def _set_statistics(self, statistics: Tensor | None, measured: bool) -> None:
        """Sets each norm's part of the statistics [B, 2, C], and whether to measure."""
        start = 0
        for norm in self._norms:
            stop = start + norm.own.num_features
            norm.given = None if statistics is None else statistics[..., start:stop].to(self._device)
            norm.is_measuring, norm.sums, start = measured, None, stop


def statistics_of(sums: Tensor) -> Tensor:
    """[2, C] float32, mean and variance, from the sums [3, C] that `PieceRunner.run` measured over a whole picture."""
    mean, square = sums[:2] / sums[2]
    return torch.stack([mean, square - mean**2]).float()


class _PictureNorm(nn.Module):
    """An InstanceNorm with optional given statistics for each picture of a batch."""

    def __init__(self, own: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.own = own
        self.given: Tensor | None = None  # [B, 2, C]
        self.is_measuring = False
        self.sums: Tensor | None = None  # [B, 3, C]

    def forward(self, x: Tensor) -> Tensor:
        if self.is_measuring:
            variance, mean = (moment.double() for moment in torch.var_mean(x, dim=(2, 3), correction=0))
            self.sums = x[0, 0].numel() * torch.stack([mean, variance + mean**2, torch.ones_like(mean)], dim=1)
        if self.given is None:
            own: Tensor = self.own(x)
            return own
        # BatchNorm with constant statistics, with the batch folded into the channels.
        mean, variance = (moment.flatten() for moment in self.given.unbind(1))
        weight = self.own.weight.repeat(len(x)) if self.own.affine else None
        bias = self.own.bias.repeat(len(x)) if self.own.affine else None
        one = x.reshape(1, -1, *x.shape[2:])
        return F.batch_norm(one, mean, variance, weight, bias, eps=self.own.eps).reshape(x.shape)
