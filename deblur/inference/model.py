"""A trained generator for Python programs."""

import numpy as np
import PIL.Image
import torch
from torch import nn

from deblur.data.arrays import Picture, as_photograph, in_form_of
from deblur.inference.tiles import restore_picture
from deblur.models.trained import load_model, pick_device


class Model:
    """A generator on a device. Threads may share it."""

    def __init__(self, generator: nn.Module, device: torch.device) -> None:
        """`generator` in eval mode, on the device."""
        self.generator, self.device = generator, device

    def restore(self, picture: Picture) -> np.ndarray | PIL.Image.Image:
        """The picture without its blur, at its size.

        picture  an array [H, W], [H, W, 3] or [H, W, 4] of uint8, uint16 or floats in [0, 1]; a PIL image; or a path
        returns  an array of the same shape and type; otherwise a PIL image, upright

        Restored in 8 bits; alpha is kept. Raises InputError for what is no picture.
        """
        source = as_photograph(picture)
        return in_form_of(restore_picture(self.generator, source.pixels, device=self.device), source, picture)


def load(model: str, device: str) -> Model:
    """See `deblur.load`."""
    where = pick_device(device)
    return Model(load_model(model, where), where)
