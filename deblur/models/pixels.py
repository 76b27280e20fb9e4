"""Pixels of pictures (uint8) as values of networks ([-1, 1]), and back."""

import torch
from torch import Tensor


def to_uint8(pictures: Tensor) -> Tensor:
    """uint8 [0, 255] of floats in [-1, 1], rounded to the nearest and clipped; any shape."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pictures: Tensor) -> Tensor:
    """float32 in [-1, 1] of uint8; any shape. `to_uint8` gives the same bytes back."""
    return pictures.float() / 127.5 - 1
