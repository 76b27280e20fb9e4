"""Blurs photographs with one kernel each, as pairs for benchmarks.quality.

python -m benchmarks.kernel_pairs --photos FOLDER --kernels psf.npz --out FOLDER
python -m benchmarks.kernel_pairs --photos FOLDER --shake 30 --out FOLDER

Kernels that are not ours are the arrays of an .npz file, as pyblur 1.3 (PyPI) has 100 of motion blur; a photograph gets
one by its number. Ours are of camera shake (deblur/data/camera_blur.py) along a path of so many pixels. Photographs
are cropped to their middle; odd ones are blurred in linear light of gamma 2.2, even ones as stored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import scipy.signal

from benchmarks.command import option, run
from deblur.data.blur import GAMMA, kernel
from deblur.data.camera_blur import CameraBlurSettings, shake_path
from deblur.data.photographs import read_photograph


@dataclass(frozen=True, kw_only=True)
class Settings:
    photos: str = option("", "Folder of sharp photographs.")
    kernels: str = option("", "An .npz file of two-dimensional kernels; without it, --shake.")
    shake: float = option(30.0, "Length of a shake's path, in pixels.")
    out: str = option("", "Folder that gets blurred/ and sharp/.")
    side: int = option(480, "Largest side of the crops, in pixels.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """Writes the pairs; returns how many, and the mean size of the kernels that were used."""
    kernel_of = given_kernels(settings.kernels) if settings.kernels else partial(shake_kernel, settings.shake)
    photos = sorted(path for path in Path(settings.photos).iterdir() if path.is_file())
    extents = []
    for nth, path in enumerate(photos):
        weights = kernel_of(nth)
        extents.append(max(np.ptp(np.argwhere(weights > weights.max() / 50), axis=0) + 1))
        sharp = _middle(read_photograph(path.read_bytes(), str(path)).pixels, settings.side)
        for folder, pixels in (("blurred", blur(sharp, weights, linear=bool(nth % 2))), ("sharp", sharp)):
            target = Path(settings.out, folder, f"{path.stem}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(target)
    return {"pairs": len(photos), "mean_extent_pixels": round(float(np.mean(extents)), 1)}


def given_kernels(path: str) -> Callable[[int], np.ndarray]:
    """The centred kernel of each photograph's number, from a file."""
    kernels = list(np.load(path).values())
    return lambda nth: centred(kernels[nth * 7 % len(kernels)])


def shake_kernel(length: float, nth: int) -> np.ndarray:
    """Of camera shake along a path of `length` pixels; the same for the same number."""
    settings = CameraBlurSettings(shake_length=(length, length))
    return kernel(shake_path(np.random.default_rng([9, nth, round(length)]), settings, 1.0))


def blur(sharp: np.ndarray, weights: np.ndarray, linear: bool) -> np.ndarray:
    """uint8 [H, W, 3] convolved with a kernel of an odd side; the border is mirrored."""
    gamma, margin = GAMMA if linear else 1.0, len(weights) // 2
    light = np.pad((sharp / 255) ** gamma, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    planes = [scipy.signal.fftconvolve(light[..., channel], weights, "valid") for channel in range(3)]
    return (255 * np.stack(planes, axis=-1).clip(0, 1) ** (1 / gamma)).round().astype(np.uint8)


def centred(given: np.ndarray) -> np.ndarray:
    """A kernel of sum 1 whose centre of mass is its centre, as far as whole pixels go; of an odd side."""
    weights = np.asarray(given, float) / np.sum(given)
    reach = max(weights.shape)
    centre = [round(float((weights * axis).sum())) for axis in np.indices(weights.shape)]
    padded = np.zeros((2 * reach + 1, 2 * reach + 1))
    top, left = (reach - at for at in centre)
    padded[top : top + weights.shape[0], left : left + weights.shape[1]] = weights
    return padded


def _middle(picture: np.ndarray, side: int) -> np.ndarray:
    top, left = (max(0, (length - side) // 2) for length in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


if __name__ == "__main__":
    run("kernel_pairs", __doc__ or "", Settings, measure)
