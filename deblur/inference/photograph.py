"""Encodes restored photographs, keeping alpha, grey and colour profile."""

import io
from typing import Any

import numpy as np
import PIL.Image

from cluster.errors import InputError
from deblur.data.formats import format_of
from deblur.data.photographs import Photograph

_LOSSY = ("JPEG", "WEBP", "AVIF")
_WITHOUT_ALPHA = ("JPEG", "BMP")
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # in pixels, limits of libjpeg and libwebp


def write_photograph(
    photograph: Photograph, pixels: np.ndarray, name: str, suffix: str, keep_exif: bool = False
) -> bytes:
    """The bytes of a file with new pixels, [H, W, 3] uint8 RGB, and the photograph's alpha, grey and colour profile.

    With `keep_exif` also its date, camera, place and author, where the format has them. Raises InputError if the
    suffix's format cannot hold the picture.
    """
    if reason := obstacle(photograph, suffix):
        raise InputError(f"{name}: {reason}; rename it to .png")
    kind = format_of(suffix).name
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    if photograph.grey:
        picture = picture.convert("L")
    if photograph.alpha is not None:
        picture.putalpha(PIL.Image.fromarray(photograph.alpha))
    # WebP has no grey: the picture becomes RGB, to which a grey profile does not apply.
    profile = None if photograph.grey and kind == "WEBP" else photograph.profile
    out = io.BytesIO()
    options: dict[str, Any] = {"quality": 95} if kind in _LOSSY else {}
    if keep_exif and photograph.exif:
        options["exif"] = photograph.exif
    picture.save(out, kind, icc_profile=profile, **options)
    return out.getvalue()


def obstacle(photograph: Photograph, suffix: str) -> str:
    """Why the suffix's format cannot hold the photograph; empty if it can."""
    kind = format_of(suffix).name
    height, width = photograph.pixels.shape[:2]
    if photograph.alpha is not None and kind in _WITHOUT_ALPHA:
        return f"has an alpha channel, which a {kind} cannot hold"
    if max(height, width) > (most := _LONGEST_SIDE.get(kind, 1 << 31)):
        return f"has {width}x{height} pixels, and a {kind} at most {most} a side"
    return ""
