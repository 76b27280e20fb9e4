"""Motion blur as cameras make it, for training on sharp photographs: `python -m deblur.pack --blur-model camera`.

Two kinds, after how real pairs are made:

- shake: one kernel for the whole picture, from a camera path as in `blur.py` but longer, with pauses and changes of
  speed, as measured camera shake has them (Köhler et al. 2012, doi:10.1007/978-3-642-33786-4_3);
- frames: the mean of 7 to 15 frames along a smooth path of the camera's rotation, as in GOPRO (Nah et al. 2017,
  arXiv:1612.02177), perhaps with a near layer that moves more and objects with paths of their own. The target is the
  middle frame.

Highlights are brighter than white while the picture is blurred and clipped afterwards, so that they leave saturated
trails. Noise and JPEG follow. Each picture gets the draws of its own seed: the result depends on nothing else.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import PIL.Image
import scipy.ndimage
import scipy.signal
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from deblur.data import pictures
from deblur.data.blur import GAMMA, BlurSettings, kernel, trajectory

Range = tuple[float, float]
SIDE = 1280  # lengths are given for pictures whose longer side has at most this many pixels
SHORTEST = 3.0  # pixels, of a shake path: a shorter one is no visible blur
_ROWS = 48  # of the output at a time: grids and frames stay in the cache, and a large photograph takes little memory
_SPACING = 2.5  # pixels of motion within a frame, up to which it is sampled once: beyond, edges would repeat visibly
_EDGE = 40.0  # steepness of a mask: it is opaque about a hundredth of the picture's width from its edge
_TRANSPARENT = 0.002  # opacity below half a level of 255


@dataclass(frozen=True, kw_only=True)
class CameraBlurSettings:
    """Ranges and shares of the random parameters; 0 switches a share off.

    Lengths are pixels along the path in a picture whose longer side is 1280; they grow with a longer side, while a
    smaller picture counts as a part of such a picture. Ranges are drawn from uniformly, lengths with short ones more
    often.
    """

    unblurred_share: float = 0.05
    """Share of pairs without motion blur."""
    shake_share: float = 0.85
    """Share of shake among blurred pairs; the others are frames."""
    shake_length: Range = (3.0, 45.0)
    """Length of a shake path, pixels."""
    dwell: Range = (0.0, 1.0)
    """Standard deviation of the logarithm of the time that a shake spends at each place of its path."""
    frames: tuple[int, int] = (7, 15)
    """Number of frames; odd. Of a fast path each is the mean of three moments: a frame is exposed for some time too."""
    frames_length: Range = (0.0, 40.0)
    """Length of the camera's path at the picture's centre, pixels."""
    roll_degrees: Range = (0.0, 1.0)
    """Rotation about the optical axis from the first to the last frame, degrees."""
    focal: Range = (0.7, 1.5)
    """Focal length in longer sides: the smaller, the more the blur differs between centre and border."""
    depth_share: float = 0.3
    """Share of near layers among frames."""
    parallax: Range = (0.3, 1.0)
    """Additional motion of the near layer, as a fraction of the camera's path."""
    object_share: float = 0.3
    """Share of moving objects among frames: one or two, each with a path of its own."""
    object_length: Range = (0.0, 40.0)
    """Length of an object's path, pixels."""
    linear_share: float = 0.5
    """Share averaged in linear light; the others are averaged as stored."""
    srgb_share: float = 0.5
    """Share with sRGB's response curve; the others have gamma 2.2."""
    highlight_share: float = 0.1
    """Share with highlights brighter than white."""
    highlight_factor: Range = (1.0, 4.0)
    """Brightness of white in linear light, relative to the value at which it is clipped."""
    highlight_threshold: float = 0.7
    """Linear light above which values are boosted, smoothly, in [0, 1)."""
    noise_share: float = 0.05
    """Share with noise."""
    read_noise: Range = (0.0, 0.006)
    """Standard deviation of the noise that is the same everywhere, relative to white, in stored values."""
    shot_noise: Range = (0.0, 0.006)
    """Standard deviation at white of the noise whose variance is proportional to the stored value."""
    jpeg_share: float = 0.05
    """Share compressed as JPEG."""
    jpeg_quality: tuple[int, int] = (75, 98)
    """Pillow's quality, both ends included."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What moves as one in a series of frames."""

    homographies: np.ndarray
    """float64 [frames, 3, 3]: pixel (x, y, 1) of a frame to the sharp picture's, both relative to its centre."""
    mask: Tensor | None = None
    """float32 [H, W]: opacity over the layers before it, in [0, 1]; None for the background."""


def camera_blurred(
    sharp: np.ndarray, seed: int | Sequence[int], settings: CameraBlurSettings | None = None
) -> np.ndarray:
    """uint8 [H, W, 3] as a camera might have taken the sharp picture; deterministic in the seed.

    Aligned with it: a shake's kernel is centred, and the middle one of the frames is the sharp picture. What moves in
    from beyond the border is the mirrored picture.
    """
    settings = settings or CameraBlurSettings()
    # A stream per purpose: switching one off does not change the others.
    kind, motion, light, sensor = np.random.default_rng(seed).spawn(4)
    unblurred, shaken = kind.random(2) < (settings.unblurred_share, settings.shake_share)
    stored = torch.from_numpy(np.ascontiguousarray(sharp.transpose(2, 0, 1))).float() / 255
    if not unblurred:
        move: Callable[[Tensor], Tensor]
        if shaken:
            move = partial(convolved, weights=kernel(shake_path(motion, settings, _scale(*sharp.shape[:2]))))
        else:
            move = partial(averaged, layers=moving_layers(motion, settings, *sharp.shape[:2]))
        stored = exposed(stored, move, light, settings)
    return developed(stored, sensor, settings)


# ---- motion


def _scale(height: int, width: int) -> float:
    """Pixels per pixel of the settings, at least 1."""
    return max(1.0, max(height, width) / SIDE)


def _length(draw: np.random.Generator, within: Range) -> float:
    """More often short than long, as in photographs that somebody keeps: half are below a third of the range."""
    return float(within[0] + (within[1] - within[0]) * draw.random() ** 1.585)


def shake_path(draw: np.random.Generator, settings: CameraBlurSettings, scale: float) -> np.ndarray:
    """complex128 [steps]: camera positions in pixels at equal times, with the dwell times of a hand."""
    length = scale * _length(draw, settings.shake_length)
    # The trajectory's forces are relative to pixels: a longer one would be a coil. So it is scaled up.
    path = trajectory(draw, BlurSettings(shortest=SHORTEST, longest=SHORTEST)) * (length / SHORTEST)
    steps = len(path)
    slow = scipy.ndimage.gaussian_filter1d(draw.standard_normal(steps), steps / 20, mode="wrap")
    dwell = np.exp(draw.uniform(*settings.dwell) * slow / slow.std())
    elapsed = np.concatenate([[0], np.cumsum((dwell[1:] + dwell[:-1]) / 2)])
    return np.asarray(np.interp(np.linspace(0, elapsed[-1], steps), elapsed, path))


def smooth_path(draw: np.random.Generator, count: int, length: float) -> np.ndarray:
    """complex128 [count], count odd: positions at equal times along a cubic of this length, through 0 in the middle."""
    time = np.linspace(-1, 1, count)
    speed, bend, twist = (draw.standard_normal((3, 2)) * [[1], [0.5], [0.25]]) @ [1, 1j]
    path = speed * time + bend * time**2 + twist * time**3
    return np.asarray(path * (length / abs(np.diff(path)).sum()))


def translations(path: np.ndarray) -> np.ndarray:
    """float64 [n, 3, 3]: homographies that shift by a path, complex [n]."""
    matrices = np.tile(np.eye(3), (len(path), 1, 1))
    matrices[:, 0, 2], matrices[:, 1, 2] = path.real, path.imag
    return matrices


def rotations(path: np.ndarray, roll: np.ndarray, focal: float) -> np.ndarray:
    """float64 [n, 3, 3]: homographies of a camera that turns.

    path: complex [n], shift of the picture's centre in pixels; roll: radians [n]; focal: pixels.
    """
    matrices = np.zeros((len(path), 3, 3))
    lens = np.diag([focal, focal, 1])
    for nth, (shift, angle) in enumerate(zip(path, roll, strict=True)):
        yaw, pitch = math.atan2(shift.real, focal), math.atan2(shift.imag, focal)
        about_y = [[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]]
        about_x = [[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]]
        about_z = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
        matrices[nth] = lens @ about_y @ about_x @ about_z @ np.linalg.inv(lens)
    return matrices


def moving_layers(draw: np.random.Generator, settings: CameraBlurSettings, height: int, width: int) -> list[Layer]:
    """The background, perhaps a near layer, and perhaps objects; the middle frame of each is the sharp picture."""
    scale = _scale(height, width)
    length = scale * _length(draw, settings.frames_length)
    has_depth, has_objects = draw.random(2) < (settings.depth_share, settings.object_share)
    lengths = [scale * _length(draw, settings.object_length) for _ in range(draw.integers(1, 3) if has_objects else 0)]
    count = 3 * ((int(draw.integers(*settings.frames, endpoint=True)) - 1) // 2 * 2 + 1)
    path = smooth_path(draw, count, length)
    roll = smooth_path(draw, count, 1.0).real
    roll *= np.radians(draw.uniform(*settings.roll_degrees)) / np.ptp(roll)
    camera = rotations(path, roll, draw.uniform(*settings.focal) * scale * SIDE)
    layers = [Layer(homographies=camera)]
    if has_depth:
        near = translations(path * draw.uniform(*settings.parallax)) @ camera
        layers.append(Layer(homographies=near, mask=soft_mask(draw, height, width)))
    for length in lengths:
        own = translations(smooth_path(draw, count, length))
        layers.append(Layer(homographies=own, mask=soft_mask(draw, height, width, blob=True)))
    if 3 * _largest_step(layers, height, width) > _SPACING:
        return layers
    return [replace(layer, homographies=layer.homographies[1::3]) for layer in layers]  # the same middle


def _corners(layers: Sequence[Layer], height: int, width: int) -> np.ndarray:
    """float64 [layers, frames, 2, 4]: where each layer shows the picture's corners from, relative to the centre."""
    x, y = (width - 1) / 2, (height - 1) / 2
    moved = np.stack([layer.homographies for layer in layers]) @ [[-x, x, -x, x], [-y, -y, y, y], [1, 1, 1, 1]]
    return np.asarray(moved[..., :2, :] / moved[..., 2:, :])


def _largest_step(layers: Sequence[Layer], height: int, width: int) -> float:
    """Pixels between one frame and the next, at most."""
    return float(np.linalg.norm(np.diff(_corners(layers, height, width), axis=1), axis=2).max())


def reach(layers: Sequence[Layer], height: int, width: int) -> int:
    """Pixels that the layers' motion looks beyond the border at most, rounded up."""
    still = _corners([Layer(homographies=np.eye(3)[None])], height, width)
    return math.ceil(abs(_corners(layers, height, width) - still).max())


def soft_mask(draw: np.random.Generator, height: int, width: int, blob: bool = False) -> Tensor:
    """float32 [H, W] in [0, 1]: random regions, or one blob that covers 1 to 15 % of the picture."""
    noise = torch.from_numpy(draw.standard_normal((1, 1, 6, 8), dtype=np.float32))
    field = interpolate(noise, (height, width), mode="bicubic", align_corners=True)[0, 0]
    if blob:
        x, y = draw.uniform(-0.8, 0.8, 2)
        across, down = draw.uniform(0.15, 0.45, 2)
        rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
        field = 0.3 * field + 2 * (1 - ((columns - x) / across) ** 2 - ((rows - y) / down) ** 2)
    return torch.sigmoid(_EDGE * field)


# ---- blur of [3, H, W], in linear light or as stored; the border is mirrored


def convolved(picture: Tensor, weights: np.ndarray) -> Tensor:
    """float32 [3, H, W] convolved with a kernel [k, k], k odd."""
    padded, weights = _mirrored(picture, len(weights) // 2), weights.astype(np.float32)
    planes = [scipy.signal.oaconvolve(plane, weights, "valid") for plane in padded.numpy()]
    return torch.from_numpy(np.stack(planes))


def averaged(picture: Tensor, layers: Sequence[Layer]) -> Tensor:
    """float32 [3, H, W]: the mean of all frames."""
    height, width = picture.shape[1:]
    frames, margin = len(layers[0].homographies), reach(layers, height, width) + 1
    padded = _mirrored(picture, margin)
    moving = [
        replace(layer, mask=None if layer.mask is None else _mirrored(layer.mask[None], margin)) for layer in layers
    ]
    mean = torch.zeros_like(picture)
    for top in range(0, height, _ROWS):
        band = mean[:, top : top + _ROWS]
        rows = range(top + margin, top + margin + band.shape[1])
        seen = slice(rows.start - margin, rows.stop + margin)  # most bands show nothing of an object
        visible = [layer for layer in moving if layer.mask is None or layer.mask[:, seen].max() > _TRANSPARENT]
        for nth in range(frames):
            band += _frame(padded, visible, nth, rows, margin)
    return mean / frames


def _mirrored(planes: Tensor, margin: int) -> Tensor:
    """[C, H + 2 margin, W + 2 margin] of [C, H, W]."""
    return torch.from_numpy(np.pad(planes.numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="symmetric"))


def _frame(picture: Tensor, layers: Sequence[Layer], nth: int, rows: range, margin: int) -> Tensor:
    """[3, rows, W - 2 margin]: some rows of the nth frame."""
    frame = torch.zeros(())
    for layer in layers:
        grid = _grid(layer.homographies[nth], picture.shape[1], picture.shape[2], rows, margin)
        shown = _sampled(picture, grid)
        frame = shown if layer.mask is None else torch.lerp(frame, shown, _sampled(layer.mask, grid))
    return frame


def _grid(homography: np.ndarray, height: int, width: int, rows: range, margin: int) -> Tensor:
    """float32 [1, rows, W - 2 margin, 2]: where each pixel comes from, in [-1, 1] over the picture."""
    half = np.diag([(width - 1) / 2, (height - 1) / 2, 1])
    (a, b, c), (d, e, f), (g, h, i) = np.linalg.inv(half) @ homography @ half
    y = torch.linspace(-1, 1, height)[rows.start : rows.stop, None]
    x = torch.linspace(-1, 1, width)[margin : width - margin]
    depth = g * x + (h * y + i)
    return torch.stack([(a * x + (b * y + c)) / depth, (d * x + (e * y + f)) / depth], dim=-1)[None]


def _sampled(picture: Tensor, grid: Tensor) -> Tensor:
    """[C, h, w] of [C, H, W], bilinear."""
    return grid_sample(picture[None], grid, padding_mode="border", align_corners=True)[0]


# ---- light and sensor


def to_linear(stored: Tensor, srgb: bool) -> Tensor:
    """Linear light of stored values: sRGB's curve (IEC 61966-2-1) or gamma 2.2; white is 1."""
    if not srgb:
        return _power(stored, GAMMA)
    return torch.where(stored <= 0.04045, stored / 12.92, _power((stored + 0.055) / 1.055, 2.4))


def to_stored(light: Tensor, srgb: bool) -> Tensor:
    """The inverse of `to_linear`; negative values become 0."""
    light = light.clamp(min=0)
    if not srgb:
        return _power(light, 1 / GAMMA)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * _power(light, 1 / 2.4) - 0.055)


def _power(light: Tensor, exponent: float) -> Tensor:
    """NumPy's: torch rounds the last elements of each thread's part differently, so that threads would change bits."""
    return torch.from_numpy(np.asarray(np.power(light.numpy(), np.float32(exponent))))


def boosted(light: Tensor, factor: float, threshold: float) -> Tensor:
    """[3, H, W] of linear light with white brighter by a factor; unchanged where the mean is below the threshold."""
    above = ((light.mean(dim=0) - threshold) / (1 - threshold)).clamp(0, 1)
    return light * (1 + (factor - 1) * above**2 * (3 - 2 * above))


def exposed(
    stored: Tensor, move: Callable[[Tensor], Tensor], draw: np.random.Generator, settings: CameraBlurSettings
) -> Tensor:
    """Stored values [3, h, w] of a picture [3, H, W] that moves; not yet clipped."""
    linear, srgb, bright = (
        bool(drawn < share)
        for drawn, share in zip(
            draw.random(3), (settings.linear_share, settings.srgb_share, settings.highlight_share), strict=True
        )
    )
    factor = draw.uniform(*settings.highlight_factor) if bright else 1.0
    light = boosted(to_linear(stored, srgb), factor, settings.highlight_threshold)
    return to_stored(move(light), srgb) if linear else move(to_stored(light, srgb))


def developed(stored: Tensor, draw: np.random.Generator, settings: CameraBlurSettings) -> np.ndarray:
    """uint8 [H, W, 3] of stored values [3, H, W]: clipped, with noise, compressed."""
    noisy, compressed = draw.random(2) < (settings.noise_share, settings.jpeg_share)
    read, shot = draw.uniform(*settings.read_noise), draw.uniform(*settings.shot_noise)
    quality = int(draw.integers(*settings.jpeg_quality, endpoint=True))
    stored = stored.clamp(0, 1)
    if noisy:
        noise = torch.from_numpy(draw.standard_normal(stored.shape, dtype=np.float32))
        stored = (stored + noise * (read**2 + shot**2 * stored).sqrt()).clamp(0, 1)
    pixels = np.ascontiguousarray((255 * stored).round().to(torch.uint8).permute(1, 2, 0).numpy())
    if not compressed:
        return pixels
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return pictures.decode(file.getvalue(), "JPEG")
