"""Content negotiation: q-values as werkzeug parses them, and what a format can hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from deblur.app.media import SUFFIXES, NotAcceptable, answer_type, quality
from deblur.data.photographs import Photograph

RANGES = ["*/*", "image/*", "image/jpeg", "image/png", "image/webp", "image/avif", "text/html"]


def photograph(height: int = 8, width: int = 9, alpha: bool = False) -> Photograph:
    pixels = np.zeros((height, width, 3), np.uint8)
    return Photograph(pixels=pixels, alpha=pixels[..., 0] if alpha else None, grey=False, profile=None)


@given(st.dictionaries(st.sampled_from(RANGES), st.integers(0, 10), min_size=1), st.sampled_from(sorted(SUFFIXES)))
def test_q_values_equal_those_of_werkzeug(qualities: dict[str, int], kind: str) -> None:
    accept = ", ".join(f"{name};q={tenths / 10}" for name, tenths in qualities.items())
    # Werkzeug also prefers the most specific range.
    assert quality(kind, accept) == pytest.approx(parse_accept_header(accept, MIMEAccept).quality(kind))


@pytest.mark.parametrize(
    ("accept", "given_type", "answer"),
    [
        (None, "image/png", "image/png"),
        ("*/*", "image/webp", "image/webp"),
        ("image/*", "image/jpeg", "image/jpeg"),
        ("image/png, image/webp", "image/webp", "image/webp"),
        ("image/png;q=0.2, image/webp;q=0.9", "image/png", "image/webp"),
        ("image/png;q=nonsense, image/webp", "image/png", "image/webp"),
        ("IMAGE/PNG ; q=1", "image/jpeg", "image/png"),
    ],
)
def test_preferred_type_is_chosen_and_the_given_one_among_equals(
    accept: str | None, given_type: str, answer: str
) -> None:
    assert answer_type(accept, given_type, photograph()) == answer


def test_type_that_cannot_hold_the_picture_is_skipped() -> None:
    assert answer_type("image/jpeg, image/png;q=0.1", "image/png", photograph(alpha=True)) == "image/png"
    assert answer_type("image/webp, */*;q=0.1", "image/jpeg", photograph(width=20_000)) == "image/jpeg"


@pytest.mark.parametrize(
    ("accept", "found", "pattern"),
    [
        ("text/html", photograph(), "text/html.* image/jpeg, image/png, image/webp"),
        ("image/png;q=0", photograph(), "image/png;q=0.* image/webp"),
        ("image/jpeg", photograph(alpha=True), "alpha channel.* JPEG.* image/png"),
        ("image/webp", photograph(height=16_384), "9x16384.* 16383"),
    ],
)
def test_error_gives_the_reason(accept: str, found: Photograph, pattern: str) -> None:
    with pytest.raises(NotAcceptable, match=pattern):
        answer_type(accept, "image/png", found)
