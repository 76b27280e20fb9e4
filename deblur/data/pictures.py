"""Pictures as bytes and as arrays: uint8 RGB [H, W, 3], nothing else."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image

from cluster.errors import InputError

MAX_PIXELS = 64_000_000  # beyond it a picture is taken for a decompression bomb
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


class Undecodable(InputError):
    """Bytes that are no picture, or one that is refused."""


class TooLarge(Undecodable):
    """More pixels than are decoded."""


def open_picture(source: bytes | Path, name: str) -> PIL.Image.Image:
    """A picture whose header was read and whose size was checked, not decoded yet. Raises Undecodable naming it."""
    try:
        picture = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except PIL.Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise TooLarge(f"{name}: is over the limit of {MAX_PIXELS} pixels; scale it down") from error
    except Exception as error:
        reason = f"none of {', '.join(_FORMATS)}" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise Undecodable(f"{name}: not a picture that can be decoded ({reason}); replace or remove it") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise TooLarge(f"{name}: {width}x{height} is over the limit of {MAX_PIXELS} pixels; scale it down")
    return picture


def decode(data: bytes, name: str, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """uint8 RGB [H, W, 3] of a file's bytes, or of its pixels in a box (left, top, right, bottom) alone.

    What lies below the box in a PNG is not decoded, and so not looked at. Raises Undecodable that names the picture.
    """
    picture = open_picture(_top(data, box[3]) if box else data, name)
    try:
        part = picture.crop(box) if box else picture
        return np.array(part if part.mode == "RGB" else part.convert("RGB"))
    except Exception as error:
        raise Undecodable(f"{name}: does not decode ({error}); replace or remove it") from error


def _top(data: bytes, rows: int) -> bytes:
    """The PNG of a PNG's first rows: its header says so, and decoders stop there (ISO/IEC 15948, 11.2.2).

    Other formats, and interlaced pictures, whose rows do not come from top to bottom, as they are.
    """
    if data[12:16] != b"IHDR" or data[28:29] != b"\0" or struct.unpack(">I", data[20:24])[0] <= rows:
        return data
    header = data[12:20] + struct.pack(">I", rows) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of uint8 RGB [H, W, 3]; the same pixels give the same bytes."""
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()
