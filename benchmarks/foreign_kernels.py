"""Blurs photographs with kernels that are not ours, as pairs for benchmarks.quality.

python -m benchmarks.foreign_kernels --photos FOLDER --kernels psf.npz --out FOLDER

Kernels are the arrays of an .npz file, as pyblur 1.3 (PyPI) has 100 of motion blur. Each photograph, cropped to its
middle, gets one by its number; odd ones are blurred in linear light of gamma 2.2, even ones as stored.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import scipy.signal

from benchmarks.command import option, run
from deblur.data.blur import GAMMA
from deblur.data.photographs import read_photograph


@dataclass(frozen=True, kw_only=True)
class Settings:
    photos: str = option("", "Folder of sharp photographs.")
    kernels: str = option("", "An .npz file of two-dimensional kernels.")
    out: str = option("", "Folder that gets blurred/ and sharp/.")
    side: int = option(480, "Largest side of the crops, in pixels.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """Writes the pairs; returns how many, and the mean size of the kernels that were used."""
    kernels = list(np.load(settings.kernels).values())
    photos = sorted(path for path in Path(settings.photos).iterdir() if path.is_file())
    extents = []
    for nth, path in enumerate(photos):
        kernel = centred(kernels[nth * 7 % len(kernels)])
        extents.append(max(np.ptp(np.argwhere(kernel > kernel.max() / 50), axis=0) + 1))
        sharp = _middle(read_photograph(path.read_bytes(), str(path)).pixels, settings.side)
        for folder, pixels in (("blurred", blur(sharp, kernel, linear=bool(nth % 2))), ("sharp", sharp)):
            target = Path(settings.out, folder, f"{path.stem}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(target)
    return {"pairs": len(photos), "mean_extent_pixels": round(float(np.mean(extents)), 1)}


def blur(sharp: np.ndarray, kernel: np.ndarray, linear: bool) -> np.ndarray:
    """uint8 [H, W, 3] convolved with a kernel of an odd side; the border is mirrored."""
    gamma, margin = GAMMA if linear else 1.0, len(kernel) // 2
    light = np.pad((sharp / 255) ** gamma, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    planes = [scipy.signal.fftconvolve(light[..., channel], kernel, "valid") for channel in range(3)]
    return (255 * np.stack(planes, axis=-1).clip(0, 1) ** (1 / gamma)).round().astype(np.uint8)


def centred(kernel: np.ndarray) -> np.ndarray:
    """A kernel of sum 1 whose centre of mass is its centre, as far as whole pixels go; of an odd side."""
    weights = np.asarray(kernel, float) / np.sum(kernel)
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
    run("foreign_kernels", __doc__ or "", Settings, measure)
