"""Converts pixels (uint8) to network values ([-1, 1]) and back."""

import torch
from torch import Tensor


def to_uint8(pictures: Tensor) -> Tensor:
    """Floats in [-1, 1], any shape, to uint8 in [0, 255], rounded to nearest and clipped."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pictures: Tensor) -> Tensor:
    """uint8, any shape, to float32 in [-1, 1]; `to_uint8` is the exact inverse."""
    return pictures.float() / 127.5 - 1
