"""Decodes and encodes pictures as uint8 RGB arrays [H, W, 3]."""

import io
import struct
import warnings
import zlib
from typing import IO

import numpy as np
import PIL.ExifTags
import PIL.Image

from cluster.errors import InputError
from deblur.data.formats import NAMES

MAX_PIXELS = 256_000_000  # larger pictures are refused as decompression bombs; phones have up to 200 megapixels
# Pillow makes room for a GIF's frame while it opens the file, and refuses what is over twice this number.
PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


class Undecodable(InputError):
    """Not a picture, or one that is refused."""


class TooLarge(Undecodable):
    """Over the limit of pixels."""


def open_picture(source: bytes | IO[bytes], name: str, max_pixels: int | None = None) -> PIL.Image.Image:
    """Reads a picture's header and checks its size, without decoding. Raises Undecodable naming it.

    max_pixels  default: MAX_PIXELS
    """
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    PIL.Image.MAX_IMAGE_PIXELS = max(PIL.Image.MAX_IMAGE_PIXELS or 0, max_pixels // 2)
    try:
        picture = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=NAMES)
    except PIL.Image.DecompressionBombError as error:
        raise TooLarge(f"{name}: is over the limit of {max_pixels} pixels; scale it down") from error
    except Exception as error:
        reason = f"none of {', '.join(NAMES)}" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise Undecodable(f"{name}: not a picture that can be decoded ({reason}); replace or remove it") from error
    width, height = picture.size
    if width * height > max_pixels:
        size = f"{width}x{height} is over the limit of {max_pixels} pixels"
        raise TooLarge(f"{name}: {size}; scale it down")
    return picture


def upright_size(picture: PIL.Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation is applied."""
    width, height = picture.size
    if picture.format == "TIFF":  # Pillow has turned it already
        return width, height
    try:
        turned = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) > 4
    except Exception:  # damaged EXIF raises many kinds of errors; it is ignored when decoding, too
        turned = False
    return (height, width) if turned else (width, height)


def decode(data: bytes, name: str, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a packed picture's bytes, or only of its pixels in a box (left, top, right, bottom).

    Other files are decoded by photographs.py. Rows of a PNG below the box are neither decoded nor checked. Raises
    Undecodable naming the picture.
    """
    picture = open_picture(_top(data, box[3]) if box else data, name)
    try:
        part = picture.crop(box) if box else picture
        return np.array(part if part.mode == "RGB" else part.convert("RGB"))
    except Exception as error:
        raise Undecodable(f"{name}: does not decode ({error}); replace or remove it") from error


def _top(data: bytes, rows: int) -> bytes:
    """Limits a PNG to its first rows by changing the height in its header (ISO/IEC 15948, 11.2.2).

    Returns other formats unchanged, and interlaced PNGs, whose rows are not stored from top to bottom.
    """
    if data[12:16] != b"IHDR" or data[28:29] != b"\0" or struct.unpack(">I", data[20:24])[0] <= rows:
        return data
    header = data[12:20] + struct.pack(">I", rows) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of uint8 RGB [H, W, 3]; deterministic."""
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()
