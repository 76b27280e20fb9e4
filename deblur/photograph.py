"""Photographs as files and as pixels: upright, with their alpha, their grey and their colour profile."""

import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageOps

from cluster.errors import InputError
from deblur.data.pictures import open_picture

_FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}  # else JPEG
_WITHOUT_ALPHA = ("JPEG", "BMP")


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """What a file holds, upright."""

    pixels: np.ndarray
    """[H, W, 3] uint8 RGB; three equal channels where grey."""
    alpha: np.ndarray | None
    """[H, W] uint8."""
    grey: bool
    profile: bytes | None
    """ICC profile of the pixels."""


def read_photograph(data: bytes, name: str) -> Photograph:
    """Decodes a file. Raises InputError with its name where that cannot be done without loss of meaning."""
    picture = open_picture(data, name)
    # A phone's MPO is one photograph; what follows in it are depth and brightness maps.
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        raise InputError(f"{name}: holds {picture.n_frames} pictures; split it into files of one")
    if picture.mode in ("I", "F"):
        raise InputError(f"{name}: holds {picture.mode} values of 32 bits, no photograph; convert it to 8 or 16 bits")
    try:
        return _photograph(PIL.ImageOps.exif_transpose(picture))
    except Exception as error:
        raise InputError(f"{name}: does not decode ({error}); replace or remove it") from error


def _photograph(picture: PIL.Image.Image) -> Photograph:
    grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16")
    profile = None if picture.mode in ("CMYK", "LAB") else picture.info.get("icc_profile")
    if picture.mode.startswith("I;16"):
        # By hand: Pillow clips at 255 in some versions and takes the high byte in others.
        values = np.asarray(picture).astype(np.float32) / 257
        picture = PIL.Image.fromarray(values.round().astype(np.uint8))
    alpha = np.array(picture.convert("RGBA").getchannel("A")) if picture.has_transparency_data else None
    pixels = np.array(picture.convert("RGBA" if alpha is not None else "RGB"))[..., :3]
    return Photograph(pixels=pixels, alpha=alpha, grey=grey, profile=profile)


def write_photograph(photograph: Photograph, pixels: np.ndarray, name: str, suffix: str) -> bytes:
    """Other pixels, [H, W, 3] uint8 RGB, with all else that the photograph had, as the bytes of a file."""
    kind = _FORMATS.get(suffix.lower(), "JPEG")
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    if photograph.grey:
        picture = picture.convert("L")
    if photograph.alpha is not None:
        if kind in _WITHOUT_ALPHA:
            raise InputError(f"{name}: has an alpha channel, which a {kind} cannot hold; rename it to .png")
        picture.putalpha(PIL.Image.fromarray(photograph.alpha))
    out = io.BytesIO()
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    picture.save(out, kind, icc_profile=photograph.profile, **options)
    return out.getvalue()
