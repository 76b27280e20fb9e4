"""Synthetic motion blur: sharp photographs, convolved with a random camera trajectory.

The method is DeblurGAN's (arXiv:1711.07064, section 4 and algorithm 1) after Boracchi and Foi 2012
(doi:10.1109/TIP.2012.2192126): the trajectory is a Markov process with inertia, Gaussian perturbations, a centripetal
force towards its start, and sudden shakes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.signal

GAMMA = 2.2  # between stored values and linear light, as for GOPRO's blur_gamma


@dataclass(frozen=True, kw_only=True)
class BlurSettings:
    """Ranges of the random parameters. Lengths are in pixels along the path; the kernel is smaller than that.

    The defaults suit pictures about 500 pixels wide: paths of 1 to 2 % of their width.
    """

    shortest: float = 3.0
    longest: float = 10.0
    steps: int = 1000
    """Points of a path."""
    pull: float = 0.7
    """Maximum centripetal force: fraction of the offset from the start."""
    tremble: float = 10.0
    """Maximum standard deviation of the Gaussian perturbations."""
    shake: float = 0.2
    """Maximum probability of a sudden shake, a turn by about 180 degrees, relative to `impulse`."""
    impulse: float = 0.005
    """Scale of all of these per step."""


def trajectory(draw: np.random.Generator, settings: BlurSettings) -> np.ndarray:
    """complex128 [steps]: camera positions in pixels, at constant speed, starting at 0."""
    pull, shake, tremble = draw.random(3) * (settings.pull, settings.shake, settings.tremble)
    stride = draw.uniform(settings.shortest, settings.longest) / (settings.steps - 1)
    velocity = stride * np.exp(2j * np.pi * draw.random())
    shakes = draw.random(settings.steps) < shake * settings.impulse
    turns = 2 * np.exp(1j * (np.pi + draw.random(settings.steps) - 0.5))
    noise = tremble * (draw.standard_normal(settings.steps) + 1j * draw.standard_normal(settings.steps))
    path = np.zeros(settings.steps, complex)
    for step in range(settings.steps - 1):
        velocity += settings.impulse * (noise[step] - pull * path[step]) * stride
        if shakes[step]:
            velocity += turns[step] * velocity
        velocity *= stride / abs(velocity)
        path[step + 1] = path[step] + velocity
    return path


def kernel(path: np.ndarray) -> np.ndarray:
    """float64 [k, k], k odd: the time that the path spends at each pixel; sums to 1.

    Points between pixels are distributed bilinearly. The centre of mass is the kernel's centre, so that the blurred and
    the sharp picture stay aligned.
    """
    path = path - path.mean()
    # One more pixel for the bilinear distribution.
    radius = math.ceil(max(abs(path.real).max(), abs(path.imag).max())) + 1
    size = 2 * radius + 1
    weights = np.zeros((size, size))
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = np.floor(path.imag).astype(int) + dy, np.floor(path.real).astype(int) + dx
            share = (1 - abs(path.imag - row)) * (1 - abs(path.real - column))
            np.add.at(weights, (row + radius, column + radius), share)
    return np.asarray(weights / weights.sum())


def blur(sharp: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] convolved with a kernel [k, k] in linear light, as in a camera; the border is mirrored."""
    radius = len(weights) // 2
    light = (np.arange(256) / 255.0) ** GAMMA
    blurred = np.empty_like(sharp)
    for channel in range(3):  # channels and blocks: a large photograph at once takes gigabytes
        padded = np.pad(light[sharp[..., channel]], radius, mode="symmetric")
        mixed = scipy.signal.oaconvolve(padded, weights, mode="valid")
        blurred[..., channel] = np.rint(255 * mixed.clip(0, 1) ** (1 / GAMMA))
    return blurred


def blurred(sharp: np.ndarray, seed: int | Sequence[int], settings: BlurSettings | None = None) -> np.ndarray:
    """uint8 [H, W, 3] with a random motion blur, deterministic in the seed."""
    draw = np.random.default_rng(seed)
    return blur(sharp, kernel(trajectory(draw, settings or BlurSettings())))
