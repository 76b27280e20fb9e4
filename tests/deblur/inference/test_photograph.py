"""Photographs in other colour spaces than RGB, and formats that do not support everything."""

import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.PngImagePlugin
import pytest

from cluster.errors import InputError
from deblur.data.photographs import Photograph, read_photograph
from deblur.inference.photograph import obstacle, write_photograph
from tests.datasets import picture

CYAN = (140, 91, 78)  # L, a and b as 8 bits: nothing like the cyan of a plain conversion
WHITE, BLACK = (255, 128, 128), (0, 128, 128)


def cmyk_profile() -> bytes:
    """A profile (ICC.1:2001-04) of inks on white paper: all of black, or of several inks, is black; cyan is CYAN."""
    corners = [
        WHITE if not any(inks) else CYAN if inks == (1, 0, 0, 0) else BLACK
        for inks in np.ndindex(2, 2, 2, 2)  # the last ink changes first
    ]
    straight = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(65536 * value for value in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table += 4 * straight + bytes(np.array(corners, np.uint8).ravel()) + 3 * straight
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    header = struct.pack(
        ">I4sI4s4s4s12s4s", 144 + len(table), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ", bytes(12), b"acsp"
    )
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)  # D50
    return header.ljust(128, b"\0") + tags + table


def in_srgb(lab: tuple[int, int, int]) -> np.ndarray:
    """By LittleCMS, from Lab itself."""
    image = PIL.Image.fromarray(np.array([[lab]], np.uint8), "LAB")
    # Pillow keeps a and b as signed numbers.
    image = PIL.Image.merge(
        "LAB", [image.getchannel(0), *(c.point(lambda v: (v + 128) % 256) for c in image.split()[1:])]
    )
    lab_profile, srgb = PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB")
    return np.asarray(PIL.ImageCms.profileToProfile(image, lab_profile, srgb, outputMode="RGB"))[0, 0].astype(int)


def cmyk(*inks: int) -> PIL.Image.Image:
    return PIL.Image.new("CMYK", (4, 3), inks)


def read(image: PIL.Image.Image, kind: str, **options: object) -> Photograph:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return read_photograph(data.getvalue(), "photo")


@pytest.mark.parametrize(("inks", "lab"), [((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK), ((255, 0, 0, 0), CYAN)])
def test_inks_become_srgb_by_their_profile(inks: tuple[int, ...], lab: tuple[int, int, int]) -> None:
    found = read(cmyk(*inks), "TIFF", icc_profile=cmyk_profile())
    assert np.abs(found.pixels.astype(int) - in_srgb(lab)).max() <= 3
    assert found.profile is None  # a profile of inks says nothing of RGB


def test_inks_without_a_profile_or_with_a_broken_one_are_converted_plainly() -> None:
    plain = np.asarray(cmyk(255, 0, 0, 0).convert("RGB"))
    for options in ({}, {"icc_profile": cmyk_profile()[:200]}):
        assert np.array_equal(read(cmyk(255, 0, 0, 0), "TIFF", **options).pixels, plain)
    assert np.abs(plain[0, 0] - in_srgb(CYAN)).max() > 20  # so the test above does look at the profile


def photograph(height: int, width: int, alpha: bool = False, grey: bool = False) -> Photograph:
    pixels = np.zeros((height, width, 3), np.uint8)
    return Photograph(pixels=pixels, alpha=pixels[..., 0] if alpha else None, grey=grey, profile=b"a profile")


@pytest.mark.parametrize(
    ("suffix", "found", "words"),
    [
        (".webp", photograph(1, 16_384), "16384x1 pixels, and a WEBP at most 16383"),
        (".jpg", photograph(65_501, 1), "1x65501 pixels, and a JPEG at most 65500"),
        (".bmp", photograph(2, 2, alpha=True), "alpha channel, which a BMP cannot hold"),
    ],
)
def test_what_a_format_does_not_support_is_refused(suffix: str, found: Photograph, words: str) -> None:
    assert words in obstacle(found, suffix)
    with pytest.raises(InputError, match=rf"photo: .*{words}.*rename it to \.png"):
        write_photograph(found, found.pixels, "photo", suffix)


@pytest.mark.parametrize(
    ("suffix", "found"),
    [
        (".webp", photograph(1, 16_383)),
        (".jpg", photograph(65_500, 1)),
        (".png", photograph(1, 70_000, alpha=True)),
        (".webp", photograph(2, 2, alpha=True)),
    ],
)
def test_what_a_format_supports_is_written(suffix: str, found: Photograph) -> None:
    assert obstacle(found, suffix) == ""
    again = PIL.Image.open(io.BytesIO(write_photograph(found, found.pixels, "photo", suffix)))
    assert again.size == found.pixels.shape[1::-1]


def test_webp_drops_the_profile_of_grey_pictures() -> None:
    found = photograph(5, 6, grey=True)
    for suffix, profile in ((".png", b"a profile"), (".jpg", b"a profile"), (".webp", None)):
        written = PIL.Image.open(io.BytesIO(write_photograph(found, picture(0, 5, 6), "photo", suffix)))
        assert written.info.get("icc_profile") == profile


def test_transparent_16_bit_grey_stays_transparent() -> None:
    values = np.array([[0, 1000, 65535], [1000, 257, 1000]], np.uint16)
    data = io.BytesIO()
    PIL.Image.fromarray(values).save(data, "PNG", transparency=1000)
    found = read_photograph(data.getvalue(), "photo")
    assert found.grey
    assert np.array_equal(found.alpha, np.where(values == 1000, 0, 255))
    assert np.array_equal(found.pixels[..., 0], [[0, 4, 255], [4, 1, 4]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(kind: str) -> None:
    found = read(PIL.Image.fromarray(picture(0, 20, 30)), kind, exif=b"Exif\0\0no exif at all")
    assert found.pixels.shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("gamma", "overridden", "level"),
    [
        (1.0, False, 186),  # linear light
        (1 / 1.8, False, 145),  # of old Macs
        (1 / 2.2, False, 128),
        (1.0, True, 128),
        (0.0, False, 128),
    ],
)
def test_a_png_for_another_display_is_read_at_the_usual_gamma(gamma: float, overridden: bool, level: int) -> None:
    chunks = PIL.PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", round(100_000 * gamma)))
    if overridden:
        chunks.add(b"sRGB", b"\0")
    found = read(PIL.Image.new("RGB", (4, 3), (0, 128, 255)), "PNG", pnginfo=chunks)
    low, middle, high = found.pixels[0, 0]
    assert (low, high) == (0, 255)
    assert middle == level
