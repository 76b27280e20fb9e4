"""Synthetic blur as cameras make it: shake, moving cameras and objects, saturated highlights, noise, JPEG.

Two kinds of motion. "Shake" convolves the picture with one long, uneven camera trajectory (data/blur.py). "Frames"
averages frames along a path of the camera, as GOPRO's pictures are made (arXiv:1612.02177, section 3): every frame is
shifted and rolled, and a layer in front of the background may move on a path of its own. Frames are averaged in linear
light or as they are stored, GOPRO's two variants.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import scipy.ndimage
import scipy.signal
import torch
import torch.nn.functional as F
from torch import Tensor

from deblur.data.blur import GAMMA, BlurSettings, kernel, trajectory

WIDTH = 1280  # lengths in pixels are for pictures of this width
SMALLEST_SCALE = 0.6  # small pictures are usually parts of large ones, with blur as long as theirs


@dataclass(frozen=True, kw_only=True)
class CameraBlurSettings:
    """Shares are probabilities per picture; lengths are in pixels of a picture 1280 wide.

    They scale with the picture's width, but not below 0.6 of their value.
    """

    shake_share: float = 0.35
    """Pictures with a shake; the others have frames."""
    sharp_share: float = 0.07
    """Pictures that are not blurred at all."""
    longest_shake: float = 60.0
    """Maximum length of a shake's path; the minimum is 3 pixels."""
    longest_motion: float = 40.0
    """Maximum length of the camera's path in frames."""
    roll_degrees: float = 1.0
    """Maximum roll of the camera in frames."""
    layer_share: float = 0.5
    """Pictures with frames in which a layer moves against the background."""
    linear_share: float = 0.5
    """Pictures averaged in linear light; the others as stored."""
    highlight_share: float = 0.5
    """Pictures averaged in linear light whose highlights are brighter than white, and clip after the blur."""
    brightest: float = 4.0
    """Maximum brightness of highlights; white is 1."""
    noise: float = 0.01
    """Maximum standard deviation of the shot noise of white and of the read noise; white is 1."""
    noise_share: float = 0.5
    """Pictures with noise."""
    jpeg_share: float = 0.33
    """Pictures compressed as JPEG, with a quality of 60 to 98."""


def camera_blurred(
    sharp: np.ndarray, seed: int | Sequence[int], settings: CameraBlurSettings | None = None
) -> np.ndarray:
    """uint8 [H, W, 3] as a camera might have taken it, deterministic in the seed.

    It is aligned with the sharp picture: a shake's kernel is centred, and the middle one of the frames is sharp.
    """
    settings, draw = settings or CameraBlurSettings(), np.random.default_rng(seed)
    stored = (sharp / np.float32(255)).astype(np.float32)
    if draw.random() < settings.sharp_share:
        blurred = stored
    else:
        decode, encode = _response(draw, settings)
        light = _highlights(decode(stored), draw, settings) if decode is not _identity else stored
        motion = _shaken if draw.random() < settings.shake_share else _moved
        blurred = encode(motion(light, draw, settings).clip(0, 1))
    if draw.random() < settings.noise_share:
        blurred = _noisy(blurred, draw, settings)
    pixels = np.rint(255 * blurred.clip(0, 1)).astype(np.uint8)
    return _compressed(pixels, int(draw.integers(60, 99))) if draw.random() < settings.jpeg_share else pixels


# ---- motion, on float32 [H, W, 3] in linear light or as stored


def _shaken(light: np.ndarray, draw: np.random.Generator, settings: CameraBlurSettings) -> np.ndarray:
    """Convolved with one kernel; the border is mirrored."""
    path = trajectory(draw, BlurSettings(shortest=3.0, longest=settings.longest_shake * _scale(light)))
    weights = kernel(path[_uneven_time(draw, len(path))]).astype(np.float32)
    radius = len(weights) // 2
    padded = np.pad(light, ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    return np.asarray(scipy.signal.oaconvolve(padded, weights[..., None], mode="valid", axes=(0, 1)))


def _scale(light: np.ndarray) -> float:
    return max(SMALLEST_SCALE, light.shape[1] / WIDTH)


def _uneven_time(draw: np.random.Generator, steps: int) -> np.ndarray:
    """int [steps]: indices into a path that is followed at a smoothly varying speed: cameras rest at turns."""
    speed = np.exp(scipy.ndimage.gaussian_filter1d(draw.standard_normal(steps), steps / 20, mode="wrap") * 8)
    progress = np.cumsum(speed) - speed[0]
    return np.searchsorted(progress / progress[-1], np.linspace(0, 1, steps)).clip(0, steps - 1)


def _moved(light: np.ndarray, draw: np.random.Generator, settings: CameraBlurSettings) -> np.ndarray:
    """The average of frames along the camera's path; the border is mirrored."""
    longest = settings.longest_motion * _scale(light)
    paths = [_Path.draw(draw, longest, settings.roll_degrees)]
    picture = torch.from_numpy(light).permute(2, 0, 1)[None]
    layers = picture
    if draw.random() < settings.layer_share:
        mask = torch.from_numpy(_mask(draw, *light.shape[:2]))[None, None]
        layers = torch.cat([picture * mask, mask], dim=1)  # premultiplied, so that edges blend
        paths.append(_Path.draw(draw, longest, settings.roll_degrees))
    # At most 1.5 pixels from one frame to the next: no steps are visible. An odd number has a middle one.
    count = 2 * (max(7, math.ceil(max(path.length for path in paths) / 1.5)) // 2) + 1
    total = torch.zeros_like(picture)
    for time in np.linspace(-0.5, 0.5, count):
        frame = paths[0].frame(picture, time)
        if len(paths) > 1:
            moved = paths[1].frame(layers, time)
            frame = frame * (1 - moved[:, 3:]) + moved[:, :3]
        total += frame
    return (total / count)[0].permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class _Path:
    """Shift and roll over the exposure, times -0.5 to 0.5; both are 0 in the middle."""

    length: float
    direction: float
    bend: float
    roll: float

    @classmethod
    def draw(cls, draw: np.random.Generator, longest: float, roll_degrees: float) -> "_Path":
        """Lengths are more often short than long, as in GOPRO."""
        roll = math.radians(roll_degrees) * draw.uniform(-1, 1) * draw.random()
        return cls(longest * draw.random() ** 1.5, draw.uniform(0, 2 * math.pi), draw.uniform(-1, 1), roll)

    def frame(self, picture: Tensor, time: float) -> Tensor:
        """[1, C, H, W] as it looks at a time."""
        height, width = picture.shape[-2:]
        along, across = self.length * time, self.length * self.bend * time * abs(time)
        cos, sin = math.cos(self.direction), math.sin(self.direction)
        dx, dy = along * cos - across * sin, along * sin + across * cos
        c, s = math.cos(self.roll * time), math.sin(self.roll * time)
        # Rows are x and y of the sampled place, in units of half the width and the height.
        matrix = torch.tensor([[c, -s * height / width, 2 * dx / width], [s * width / height, c, 2 * dy / height]])
        grid = F.affine_grid(matrix[None].to(picture.dtype), list(picture.shape), align_corners=False)
        return F.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)


def _mask(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float32 [H, W] in [0, 1]: a random blob with a soft edge, a tenth to a half of the picture."""
    coarse = draw.standard_normal((12, 12))
    field = scipy.ndimage.zoom(scipy.ndimage.gaussian_filter(coarse, 1.5), (height / 12, width / 12), order=1)
    field = field[:height, :width]
    edge = np.quantile(field, draw.uniform(0.5, 0.9))
    return np.asarray(((field - edge) / (0.02 * field.std() + 1e-6) + 0.5).clip(0, 1), np.float32)


# ---- light


def _response(
    draw: np.random.Generator, settings: CameraBlurSettings
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Stored values to what is averaged, and back: linear light by sRGB's curve or a gamma of 2.2, or as stored."""
    if draw.random() >= settings.linear_share:
        return _identity, _identity
    if draw.random() < 0.5:
        return lambda stored: stored**GAMMA, lambda light: light ** (1 / GAMMA)
    return _srgb_to_linear, _linear_to_srgb


def _identity(values: np.ndarray) -> np.ndarray:
    return values


def _srgb_to_linear(stored: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1."""
    return np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _linear_to_srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def _highlights(light: np.ndarray, draw: np.random.Generator, settings: CameraBlurSettings) -> np.ndarray:
    """What is nearly white was brighter before the sensor clipped it."""
    if draw.random() >= settings.highlight_share:
        return light
    brightest = draw.uniform(1, settings.brightest)
    nearly_white = ((light.min(axis=2, keepdims=True) - 0.85) / 0.15).clip(0, 1)
    return np.asarray(light * (1 + (brightest - 1) * nearly_white))


def _noisy(blurred: np.ndarray, draw: np.random.Generator, settings: CameraBlurSettings) -> np.ndarray:
    """Shot noise, whose variance is proportional to the value, and read noise."""
    shot, read = draw.uniform(0, settings.noise, 2)
    deviation = np.sqrt(shot**2 * blurred + read**2, dtype=np.float32)
    return np.asarray(blurred + deviation * draw.standard_normal(blurred.shape, np.float32))


def _compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))
