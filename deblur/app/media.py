"""Media types of requests and responses, and content negotiation."""

from deblur.data.formats import FORMATS
from deblur.data.photographs import Photograph
from deblur.inference.photograph import obstacle

SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
"""Of responses."""
TYPES = {one.name: one.media_types[0] for one in FORMATS if one.media_types} | {"MPO": "image/jpeg"}
"""Of requests, by Pillow's format. A phone's MPO is a JPEG with more data behind it."""
ACCEPTED = tuple(kind for one in FORMATS for kind in one.media_types)


class NotAcceptable(ValueError):
    """No type that the client accepts can hold the picture."""


def answer_type(accept: str | None, given: str, photograph: Photograph) -> str:
    """The media type that a client prefers of those that can hold the photograph; `given` among equals.

    Raises NotAcceptable with the reason.
    """
    qualities = {kind: quality(kind, accept or "*/*") for kind in sorted(SUFFIXES, key=lambda kind: kind != given)}
    accepted = sorted((kind for kind in qualities if qualities[kind] > 0), key=lambda kind: -qualities[kind])
    if not accepted:
        raise NotAcceptable(f"Accept is {accept}; it must include one of {', '.join(SUFFIXES)}")
    for kind in accepted:
        if not (reason := obstacle(photograph, SUFFIXES[kind])):
            return kind
    raise NotAcceptable(f"Accept is {accept}, but the picture {reason}; accept image/png as well")


def quality(kind: str, accept: str) -> float:
    """The q-value of a media type, 0 if it is not accepted; the most specific range counts (RFC 9110, 12.5.1)."""
    weights = {}
    for part in accept.split(","):
        media_range, *parameters = (text.strip().lower() for text in part.split(";"))
        weights[media_range] = next((_weight(text) for text in parameters if text.startswith("q=")), 1.0)
    return next((weights[media_range] for media_range in (kind, "image/*", "*/*") if media_range in weights), 0.0)


def _weight(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0
