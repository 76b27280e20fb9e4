"""The built-in sample set: scikit-image's photographs, motion-blurred by data/blur.py. Needs no network.

The photograph of the test split and its blur are fixed, and no part of it is in another split.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import skimage.data

from deblur.data.blur import blurred

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        "coffee",
        "rocket",
        "stereo_motorcycle",
        "camera",
        "coins",
        "immunohistochemistry",
        "brick",
        "grass",
        "gravel",
    ),
    "validation": ("chelsea",),
    "test": ("astronaut",),
}
BLURS = {"train": 20, "validation": 2, "test": 1}  # per photograph
_SEEDS = {"train": 1, "validation": 2, "test": 3}


@dataclass(frozen=True, kw_only=True)
class BlurredPhotograph:
    """A pair of uint8 [H, W, 3]."""

    key: str
    scene: str
    blurred: np.ndarray
    sharp: np.ndarray


def blurred_photographs(split: str) -> Iterator[BlurredPhotograph]:
    """Every photograph of a split with each of its blurs; deterministic in order and pixels."""
    for nth, name in enumerate(PHOTOGRAPHS[split]):
        sharp = photograph(name)
        for variant in range(BLURS[split]):
            yield BlurredPhotograph(
                key=f"{name}-{variant:02d}",
                scene=name,
                blurred=blurred(sharp, (_SEEDS[split], nth, variant)),
                sharp=sharp,
            )


def photograph(name: str) -> np.ndarray:
    """One of PHOTOGRAPHS, sharp: uint8 [H, W, 3]."""
    loaded = getattr(skimage.data, name)()
    picture = np.asarray(loaded[0] if isinstance(loaded, tuple) else loaded)  # the left one of the stereo pair
    return np.ascontiguousarray(np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture[..., :3])
