"""Pictures as bytes and as arrays: uint8 RGB [H, W, 3], nothing else."""

import io
from pathlib import Path

import numpy as np
import PIL.Image

from cluster.errors import InputError

MAX_PIXELS = 64_000_000  # beyond it a picture is taken for a decompression bomb
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


class Undecodable(InputError):
    """Bytes that are no picture, or one that is refused."""


def open_picture(source: bytes | Path, name: str) -> PIL.Image.Image:
    """A picture whose header was read and whose size was checked, not decoded yet. Raises Undecodable naming it."""
    try:
        picture = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except Exception as error:
        raise Undecodable(f"{name}: not a picture that can be decoded ({error}); replace or remove it") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise Undecodable(f"{name}: {width}x{height} is over the limit of {MAX_PIXELS} pixels; scale it down")
    return picture


def decode(data: bytes, name: str) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a file's bytes. Raises Undecodable that names the picture."""
    picture = open_picture(data, name)
    try:
        return np.array(picture.convert("RGB"))
    except Exception as error:
        raise Undecodable(f"{name}: does not decode ({error}); replace or remove it") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of uint8 RGB [H, W, 3]; the same pixels give the same bytes."""
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()
