"""What travels over HTTP: which types of pictures come and go, and which one a client is answered with."""

from deblur.inference.photograph import Photograph, obstacle

SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
TYPES = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""By Pillow's names. A phone's MPO is a JPEG with more behind it."""


class NotAcceptable(ValueError):
    """No type that the client accepts can hold the picture."""


def answer_type(accept: str | None, given: str, photograph: Photograph) -> str:
    """The type that a client likes best, of those that can hold the photograph; the `given` one where it likes several.

    Raises NotAcceptable with the reason.
    """
    liked = {kind: quality(kind, accept or "*/*") for kind in sorted(SUFFIXES, key=lambda kind: kind != given)}
    accepted = sorted((kind for kind in liked if liked[kind] > 0), key=lambda kind: -liked[kind])
    if not accepted:
        raise NotAcceptable(f"Accept is {accept}; the answer can be {', '.join(SUFFIXES)}")
    for kind in accepted:
        if not (reason := obstacle(photograph, SUFFIXES[kind])):
            return kind
    raise NotAcceptable(f"Accept is {accept}, but the picture {reason}; accept image/png, too")


def quality(kind: str, accept: str) -> float:
    """How much a client likes a type, 0 where not at all; of ranges the most specific counts (RFC 9110, 12.5.1)."""
    liked = {}
    for part in accept.split(","):
        media_range, *parameters = (text.strip().lower() for text in part.split(";"))
        liked[media_range] = next((_weight(text) for text in parameters if text.startswith("q=")), 1.0)
    return next((liked[media_range] for media_range in (kind, "image/*", "*/*") if media_range in liked), 0.0)


def _weight(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0
