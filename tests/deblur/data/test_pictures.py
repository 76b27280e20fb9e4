"""Decoding a box of a picture equals cropping the whole picture."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deblur.data import pictures
from tests.datasets import picture

PIXELS = picture(0, 30, 40)


def encoded(mode: str, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(PIXELS).convert(mode).save(out, kind, **options)
    return out.getvalue()


def interlaced() -> bytes:
    """Adam7 by its definition (ISO/IEC 15948, 8.2), which Pillow cannot write: seven small pictures in turn."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for top, left, down, right in passes for row in PIXELS[top::down, left::right]]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 1))]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


FILES = {mode: encoded(mode, "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")}
FILES |= {"jpeg": encoded("RGB", "JPEG"), "webp": encoded("RGB", "WEBP"), "interlaced": interlaced()}


@pytest.mark.parametrize("name", FILES)
@given(st.integers(0, 39), st.integers(0, 29), st.integers(1, 40), st.integers(1, 30))
def test_the_pixels_of_a_box_are_those_of_the_whole(name: str, left: int, top: int, width: int, height: int) -> None:
    right, bottom = min(40, left + width), min(30, top + height)
    whole = pictures.decode(FILES[name], name)
    assert whole.shape == (30, 40, 3)
    assert np.array_equal(pictures.decode(FILES[name], name, (left, top, right, bottom)), whole[top:bottom, left:right])


def test_an_interlaced_picture_is_decoded() -> None:
    assert np.array_equal(pictures.decode(interlaced(), ""), PIXELS)


def test_rows_below_the_box_are_not_decoded() -> None:
    """Most of the file is missing."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    data = pictures.encode_png(noise)[:100_000]
    assert np.array_equal(pictures.decode(data, "", (10, 20, 90, 60)), noise[20:60, 10:90])
    with pytest.raises(pictures.Undecodable, match=r"x\.png: does not decode"):
        pictures.decode(data, "x.png", (10, 20, 90, 400))


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0", bytes(100)])
def test_a_file_that_is_no_picture_is_refused_with_a_box_too(data: bytes) -> None:
    with pytest.raises(pictures.Undecodable, match=r"x\.png"):
        pictures.decode(data, "x.png", (0, 0, 1, 1))
