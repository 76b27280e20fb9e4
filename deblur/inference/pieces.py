"""Pieces of pictures through a generator: several of one size at once, each normalised as the picture it is of.

InstanceNorm divides by statistics of its whole input. A tile's own would give every tile another contrast, so tiles get
those of their picture: measured by one pass over tiles that do not overlap, then given to every tile of it. They go
with the piece, not with the network, so that pieces of different pictures share a batch.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deblur.models.pixels import from_uint8


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A picture or a part of one, and what is asked of it: to be restored, or to be measured."""

    pixels: np.ndarray
    """[h, w, 3] uint8 RGB."""
    statistics: Tensor | None = None
    """[2, C] float32, mean and variance at all InstanceNorms, one behind the other; None: the piece's own."""
    measured: bool = False

    @property
    def kind(self) -> tuple[int, int, bool, bool]:
        """Pieces of one kind fit into one batch."""
        return *self.pixels.shape[:2], self.statistics is not None, self.measured

    @property
    def num_pixels(self) -> int:
        """Height times width."""
        return self.pixels.shape[0] * self.pixels.shape[1]


class PieceRunner:
    """A generator that takes batches of pieces. One thread may use it."""

    def __init__(self, generator: nn.Module, device: torch.device | str) -> None:
        """`generator` in eval mode, on the device; its weights are shared, it stays as it is."""
        tensors = [*generator.parameters(), *generator.buffers()]
        self._generator = copy.deepcopy(generator, {id(tensor): tensor for tensor in tensors})
        self._device = device
        self._norms = []
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
        """Whether the tiles of a picture need statistics of all of it."""
        return self.num_channels > 0

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """What was asked of pieces of one kind, float32 on the CPU, in their order. Raises torch.OutOfMemoryError.

        [3, h, w]  restored, RGB in [-1, 1]
        [3, C]     measured: sums of values, of their squares, and of ones, at all InstanceNorms; float64
        """
        (kind,) = {piece.kind for piece in pieces}
        *_, given, measured = kind
        pictures = torch.from_numpy(np.stack([piece.pixels for piece in pieces])).to(self._device)
        self._give(torch.stack([piece.statistics for piece in pieces]) if given else None, measured)
        try:
            restored = self._generator(from_uint8(pictures.permute(0, 3, 1, 2)))
            if measured:
                return list(torch.cat([norm.sums for norm in self._norms], dim=2).cpu())
            return list(restored.float().cpu())
        finally:
            self._give(None, False)

    def _give(self, statistics: Tensor | None, measured: bool) -> None:
        """Tells each norm what it is to use, [B, 2, C] of all of them, and whether to measure."""
        start = 0
        for norm in self._norms:
            stop = start + norm.own.num_features
            norm.given = None if statistics is None else statistics[..., start:stop].to(self._device)
            norm.is_measuring, norm.sums, start = measured, None, stop


def statistics_of(sums: Tensor) -> Tensor:
    """[2, C] float32, mean and variance, from sums [3, C] as `PieceRunner.run` measures them, of all of a picture."""
    mean, square = sums[:2] / sums[2]
    return torch.stack([mean, square - mean**2]).float()


class _PictureNorm(nn.Module):
    """An InstanceNorm that can be told which statistics to use, for each picture of a batch."""

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
            return self.own(x)
        # BatchNorm with constant statistics, of a single picture with the channels of all.
        mean, variance = (moment.flatten() for moment in self.given.unbind(1))
        scale = (None, None)
        if self.own.affine:
            scale = (self.own.weight.repeat(len(x)), self.own.bias.repeat(len(x)))
        one = x.reshape(1, -1, *x.shape[2:])
        return F.batch_norm(one, mean, variance, *scale, eps=self.own.eps).reshape(x.shape)
