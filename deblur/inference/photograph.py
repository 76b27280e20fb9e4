"""Photographs as files and as pixels: upright, with their alpha, their grey and their colour profile."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

from cluster.errors import InputError
from deblur.data.pictures import open_picture

_FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}  # else JPEG
_WITHOUT_ALPHA = ("JPEG", "BMP")
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that libjpeg and libwebp write


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
        return _photograph(_upright(picture))
    except Exception as error:
        raise InputError(f"{name}: does not decode ({error}); replace or remove it") from error


def _photograph(picture: PIL.Image.Image) -> Photograph:
    grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16")
    if picture.mode in ("CMYK", "LAB"):
        picture = _in_srgb(picture)
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    alpha = np.array(picture.convert("RGBA").getchannel("A")) if picture.has_transparency_data else None
    pixels = np.array(picture.convert("RGBA" if alpha is not None else "RGB"))[..., :3]
    return Photograph(pixels=pixels, alpha=alpha, grey=grey, profile=profile)


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    picture.load()  # what does not decode is not to be taken for broken EXIF
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except Exception:  # its pixels are whole; damaged EXIF raises a dozen kinds
        return picture


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Grey of 16 bits in 8, with alpha where one of its values means clear."""
    # By hand: Pillow clips at 255 in some versions and takes the high byte in others.
    values = np.asarray(picture).astype(np.float32)
    grey = PIL.Image.fromarray((values / 257).round().astype(np.uint8))
    clear = picture.info.get("transparency")
    if clear is not None:
        grey.putalpha(PIL.Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _in_srgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """RGB of a picture whose channels are others; by its profile where it has one that can be read."""
    profile = picture.info.get("icc_profile")
    if profile:
        with contextlib.suppress(PIL.ImageCms.PyCMSError, OSError):
            own, srgb = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)), PIL.ImageCms.createProfile("sRGB")
            picture = PIL.ImageCms.profileToProfile(picture, own, srgb, outputMode="RGB")
    picture = picture.convert("RGB")
    picture.info.pop("icc_profile", None)
    return picture


def write_photograph(photograph: Photograph, pixels: np.ndarray, name: str, suffix: str) -> bytes:
    """Other pixels, [H, W, 3] uint8 RGB, with all else that the photograph had, as the bytes of a file.

    Raises InputError where the format that the suffix means cannot hold it.
    """
    if reason := obstacle(photograph, suffix):
        raise InputError(f"{name}: {reason}; rename it to .png")
    kind = _FORMATS.get(suffix.lower(), "JPEG")
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    if photograph.grey:
        picture = picture.convert("L")
    if photograph.alpha is not None:
        picture.putalpha(PIL.Image.fromarray(photograph.alpha))
    # WebP has no grey: it becomes RGB, of which a profile of greys says nothing.
    profile = None if photograph.grey and kind == "WEBP" else photograph.profile
    out = io.BytesIO()
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    picture.save(out, kind, icc_profile=profile, **options)
    return out.getvalue()


def obstacle(photograph: Photograph, suffix: str) -> str:
    """Why a file of the format that the suffix means cannot hold a photograph; empty where it can."""
    kind = _FORMATS.get(suffix.lower(), "JPEG")
    height, width = photograph.pixels.shape[:2]
    if photograph.alpha is not None and kind in _WITHOUT_ALPHA:
        return f"has an alpha channel, which a {kind} cannot hold"
    if max(height, width) > (most := _LONGEST_SIDE.get(kind, 1 << 31)):
        return f"has {width}x{height} pixels, and a {kind} at most {most} a side"
    return ""
