"""Decodes photographs as they look: upright, in 8 bits, with alpha, grey and colour profile. The one decoder of files.

Training decodes what packing wrote with pictures.py.
"""

import contextlib
import io
from dataclasses import dataclass, replace

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

from cluster.errors import InputError
from deblur.data.blur import GAMMA
from deblur.data.pictures import open_picture

_TAGS = PIL.ExifTags.Base
# A TIFF's other tags describe how its pixels are stored.
_KEPT_TAGS = {
    _TAGS.DateTime,
    _TAGS.Make,
    _TAGS.Model,
    _TAGS.Software,
    _TAGS.Artist,
    _TAGS.Copyright,
    _TAGS.ImageDescription,
}
_SUBJECT_AREA = 0x9214  # Pillow has no name for it
# Sizes and places in the picture before it was turned; MakerNote and Interoperability have offsets into the old file.
_DROPPED_TAGS = {_TAGS.ExifImageWidth, _TAGS.ExifImageHeight, _TAGS.SubjectLocation, _SUBJECT_AREA}
_DROPPED_TAGS |= {_TAGS.MakerNote, PIL.ExifTags.IFD.Interop}
_LONGEST_EXIF = 65_000  # bytes, in a JPEG


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """The content of a file, with its EXIF orientation applied."""

    pixels: np.ndarray
    """[H, W, 3] uint8 RGB; three equal channels if grey."""
    alpha: np.ndarray | None
    """[H, W] uint8."""
    grey: bool
    profile: bytes | None
    """ICC profile of the pixels."""
    exif: bytes = b""
    """When, where, with what and by whom it was taken; nothing that is wrong once the picture is upright."""


class Animated(InputError):
    """Holds several pictures."""


def read_photograph(data: bytes, name: str, max_pixels: int | None = None, *, first_frame: bool = False) -> Photograph:
    """Decodes a file, with `first_frame` the first of several pictures in it.

    Raises InputError with its name if it is not a photograph of 8 or 16 bits, Animated if it holds several pictures.
    """
    return photograph_of(open_picture(data, name, max_pixels), name, first_frame=first_frame)


def photograph_of(picture: PIL.Image.Image, name: str, *, first_frame: bool = False) -> Photograph:
    """The same of an image that Pillow has opened."""
    try:
        frames = getattr(picture, "n_frames", 1)
    except Exception as error:  # of a damaged GIF: many kinds
        raise InputError(f"{name}: does not decode ({error}); replace or remove it") from error
    if frames > 1 and not first_frame and picture.format != "MPO":  # of phones: then depth and gain maps follow
        raise Animated(f"{name}: holds {frames} pictures; split it into one file each")
    if picture.mode in ("I", "F"):
        raise InputError(f"{name}: has 32 bits per channel (mode {picture.mode}); convert it to 8 or 16 bits")
    try:
        return replace(_photograph(_upright(picture)), exif=_exif(picture))
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
    if has_other_gamma(picture):
        pixels = _at_usual_gamma(pixels, picture.info["gamma"])
    return Photograph(pixels=pixels, alpha=alpha, grey=grey, profile=profile)


def has_other_gamma(picture: PIL.Image.Image) -> bool:
    """Whether a PNG's gAMA says that its values are not for displays of gamma 2.2 (ISO/IEC 15948, 11.3.2.2).

    An iCCP or sRGB chunk overrides it, and libpng's 5 % of tolerance apply.
    """
    exponent = float(picture.info.get("gamma", 0.0))
    overridden = "icc_profile" in picture.info or "srgb" in picture.info
    return exponent > 0 and not overridden and abs(exponent * GAMMA - 1) > 0.05


def _at_usual_gamma(pixels: np.ndarray, exponent: float) -> np.ndarray:
    """uint8 values that stand for light ** exponent as those that stand for light ** (1 / 2.2)."""
    levels = (np.arange(256) / 255) ** (1 / (exponent * GAMMA))
    return (255 * levels).round().astype(np.uint8)[pixels]


def _exif(picture: PIL.Image.Image) -> bytes:
    kept, found = PIL.Image.Exif(), False
    try:
        given = picture.getexif()
        for tag in _KEPT_TAGS & set(given):
            kept[tag], found = given[tag], True
        for ifd in (PIL.ExifTags.IFD.Exif, PIL.ExifTags.IFD.GPSInfo):
            if values := {tag: value for tag, value in given.get_ifd(ifd).items() if tag not in _DROPPED_TAGS}:
                kept.get_ifd(ifd).update(values)
                found = True
        data = kept.tobytes() if found else b""
    except Exception:  # damaged EXIF raises many kinds of errors
        return b""
    return data if len(data) <= _LONGEST_EXIF else b""


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    picture.load()  # errors here are not caused by EXIF
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF raises many kinds of errors; the pixels are intact
        return picture


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit to 8-bit grey, with alpha if one value means transparent."""
    # Not by Pillow: some versions clip at 255, others take the high byte.
    values = np.asarray(picture).astype(np.float32)
    grey = PIL.Image.fromarray((values / 257).round().astype(np.uint8))
    clear = picture.info.get("transparency")
    if clear is not None:
        grey.putalpha(PIL.Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _in_srgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Converts CMYK or LAB to sRGB, by the picture's colour profile if it has a valid one."""
    profile = picture.info.get("icc_profile")
    if profile:
        with contextlib.suppress(PIL.ImageCms.PyCMSError, OSError):
            own, srgb = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)), PIL.ImageCms.createProfile("sRGB")
            picture = PIL.ImageCms.profileToProfile(picture, own, srgb, outputMode="RGB") or picture
    picture = picture.convert("RGB")
    picture.info.pop("icc_profile", None)
    return picture
