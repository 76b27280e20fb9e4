"""Motion blur made from sharp photographs: a shaking camera's path, drawn into a kernel, laid over the picture.

The method is DeblurGAN's (arXiv:1711.07064, section 4 and algorithm 1) after Boracchi and Foi 2012
(doi:10.1109/TIP.2012.2192126): the camera's path is a Markov process with inertia, small tremble, a pull back to where
it started, and sudden shakes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.signal

GAMMA = 2.2  # stored values to light and back, as GOPRO's blur_gamma


@dataclass(frozen=True, kw_only=True)
class BlurSettings:
    """Ranges from which each path draws. Lengths are in pixels along the path, so blurs extend over less.

    The defaults suit pictures of about 500 pixels: paths of 1 to 2 % of their width.
    """

    shortest: float = 3.0
    longest: float = 10.0
    steps: int = 1000
    """Points of a path."""
    pull: float = 0.7
    """Largest share of the offset from the start that is taken back."""
    tremble: float = 10.0
    """Largest deviation of the small changes of direction."""
    shake: float = 0.2
    """Largest probability of a sudden shake, a turn by about 180 degrees, relative to `impulse`."""
    impulse: float = 0.005
    """How much of all this one step takes."""


def trajectory(draw: np.random.Generator, settings: BlurSettings) -> np.ndarray:
    """complex128 [steps], a camera's path in pixels, at constant speed; begins at 0."""
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
    """float64 [k, k], k odd: how long the path stays at each pixel; sums to 1.

    Points between pixels are shared by their four neighbours in proportion. The centre of mass is the kernel's centre,
    so that blurred and sharp picture stay aligned.
    """
    path = path - path.mean()
    # No point of a path is farther from its mean than half its length; one more pixel for the sharing.
    radius = math.ceil(max(abs(path.real).max(), abs(path.imag).max())) + 1
    size = 2 * radius + 1
    weights = np.zeros((size, size))
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = np.floor(path.imag).astype(int) + dy, np.floor(path.real).astype(int) + dx
            share = (1 - abs(path.imag - row)) * (1 - abs(path.real - column))
            np.add.at(weights, (row + radius, column + radius), share)
    return weights / weights.sum()


def blur(sharp: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] blurred by a kernel [k, k], in linear light as in a camera; the border is mirrored."""
    radius = len(weights) // 2
    light = (np.arange(256) / 255.0) ** GAMMA
    blurred = np.empty_like(sharp)
    for channel in range(3):  # one at a time and in blocks: a large photograph as a whole takes gigabytes
        padded = np.pad(light[sharp[..., channel]], radius, mode="symmetric")
        mixed = scipy.signal.oaconvolve(padded, weights, mode="valid")
        blurred[..., channel] = np.rint(255 * mixed.clip(0, 1) ** (1 / GAMMA))
    return blurred


def blurred(sharp: np.ndarray, seed: int | Sequence[int], settings: BlurSettings | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of uint8 [H, W, 3]: a random motion blur, the same for the same seed."""
    draw = np.random.default_rng(seed)
    return blur(sharp, kernel(trajectory(draw, settings or BlurSettings())))
