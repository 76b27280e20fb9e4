"""Pictures as Python programs hold them: numpy arrays, PIL images and paths."""

import os
from pathlib import Path

import numpy as np
import PIL.Image

from cluster.errors import InputError
from deblur.data.photographs import Photograph, photograph_of, read_photograph

Picture = np.ndarray | PIL.Image.Image | str | os.PathLike[str]
"""An array [H, W], [H, W, 3] or [H, W, 4] of uint8, uint16 or floats in [0, 1]; an image; or a file's path."""
_SCALES = {"uint8": 1, "uint16": 257}  # values per level of 255


def as_photograph(picture: Picture) -> Photograph:
    """In 8 bits, upright, with alpha and grey. Raises InputError that says what else was expected."""
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, PIL.Image.Image):
        if 0 in picture.size:
            raise InputError(f"the image has {picture.width}x{picture.height} pixels; expected at least one")
        return photograph_of(picture, "the image")
    if isinstance(picture, str | os.PathLike):
        path = Path(picture)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        return read_photograph(data, str(path))
    raise InputError(f"{type(picture).__name__} is no picture; give a numpy array, a PIL image or a path")


def in_form_of(pixels: np.ndarray, source: Photograph, picture: Picture) -> np.ndarray | PIL.Image.Image:
    """Restored pixels, uint8 [H, W, 3], in the form of the picture that they are from: an array or an image."""
    image = PIL.Image.fromarray(pixels)
    if source.grey:
        image = image.convert("L")
    if not isinstance(picture, np.ndarray):
        if source.alpha is not None:
            image.putalpha(PIL.Image.fromarray(source.alpha))
        if source.profile:
            image.info["icc_profile"] = source.profile
        return image
    values = np.asarray(image).reshape(*picture.shape[:2], -1)
    if picture.dtype.kind == "f":
        values = (values / 255).astype(picture.dtype)
    else:
        values = (values * np.uint16(_SCALES[picture.dtype.name])).astype(picture.dtype)
    if source.alpha is not None:
        values = np.concatenate([values, picture[..., 3:]], axis=2)
    return values.reshape(picture.shape)


def _of_array(picture: np.ndarray) -> Photograph:
    channels = picture.shape[2:] or (1,)
    if picture.ndim not in (2, 3) or channels[0] not in (1, 3, 4) or 0 in picture.shape:
        raise InputError(f"the array is {list(picture.shape)}; expected [H, W], [H, W, 3] or [H, W, 4]")
    if picture.dtype.kind == "f":
        if not (picture.min() >= 0 and picture.max() <= 1):
            raise InputError(f"the array has floats in [{picture.min():g}, {picture.max():g}]; expected [0, 1]")
        values = (255 * picture).round().astype(np.uint8)
    elif picture.dtype == np.uint8:
        values = picture
    elif picture.dtype.name in _SCALES:
        values = (picture / _SCALES[picture.dtype.name]).round().astype(np.uint8)
    else:
        raise InputError(f"the array is of {picture.dtype}; expected uint8, uint16 or floats in [0, 1]")
    values = values.reshape(*picture.shape[:2], -1)
    grey, alpha = channels[0] == 1, values[..., 3] if channels[0] == 4 else None
    pixels = np.repeat(values, 3, axis=2) if grey else np.ascontiguousarray(values[..., :3])
    return Photograph(pixels=pixels, alpha=alpha, grey=grey, profile=None)
