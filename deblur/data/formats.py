"""File formats that packing, restoring and the service read, and in which a restored picture is written."""

from dataclasses import dataclass
from pathlib import PurePath

try:
    import pillow_heif
except ImportError:  # the extra `heic`
    pillow_heif = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format by Pillow's name."""

    name: str
    endings: tuple[str, ...]
    media_types: tuple[str, ...] = ()
    """Which the service accepts."""
    written_as: str = ""
    """Ending of a restored picture; "" for that of the input. JPEG 2000 by Pillow would lose the colour profile."""
    animated: bool = False
    """Whether its files are mostly animations or previews: found in folders only where first frames are wanted."""


HEIC = Format(
    name="HEIF", endings=(".heic", ".heif", ".hif"), media_types=("image/heic", "image/heif"), written_as=".jpg"
)
FORMATS = (
    Format(name="JPEG", endings=(".jpg", ".jpeg", ".jpe", ".jfif"), media_types=("image/jpeg",)),
    Format(name="PNG", endings=(".png",), media_types=("image/png",)),
    Format(name="WEBP", endings=(".webp",), media_types=("image/webp",)),
    Format(name="BMP", endings=(".bmp",)),
    Format(name="TIFF", endings=(".tif", ".tiff")),
    Format(name="AVIF", endings=(".avif",), media_types=("image/avif",)),
    Format(name="JPEG2000", endings=(".jp2", ".j2k", ".jpx"), written_as=".png"),
    Format(name="GIF", endings=(".gif",), media_types=("image/gif",), written_as=".png", animated=True),
    *([HEIC] if pillow_heif else []),
)
NAMES = tuple(one.name for one in FORMATS)
SUFFIXES = tuple(ending for one in FORMATS for ending in one.endings if not one.animated)
_BY_ENDING = {ending: one for one in FORMATS for ending in one.endings}

if pillow_heif:
    pillow_heif.register_heif_opener()


def is_picture(name: str, first_frame: bool = False) -> bool:
    """Whether a file's name ends as one of a format that is read; a GIF's if first frames are wanted."""
    found = _BY_ENDING.get(PurePath(name).suffix.lower())
    return found is not None and (first_frame or not found.animated)


def format_of(ending: str) -> Format:
    """The format of an ending, JPEG for unknown ones."""
    return _BY_ENDING.get(ending.lower(), FORMATS[0])


def restored_name(name: str) -> str:
    """The name of the restored picture, with another ending where its format is not written."""
    ending = format_of(PurePath(name).suffix).written_as
    return str(PurePath(name).with_suffix(ending)) if ending else name


def how_to_read(ending: str) -> str:
    """What to do so that files of an ending are read; "" if that is unknown."""
    if ending in _BY_ENDING and _BY_ENDING[ending].animated:
        return "--first-frame takes the first frame"
    return "" if pillow_heif or ending not in HEIC.endings else "pip install 'deblur-gan[heic]' to read it"
