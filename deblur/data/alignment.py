"""Finds pairs whose pictures do not show the same: shifted, turned, or with their sides swapped."""

import numpy as np
from scipy.ndimage import uniform_filter
from skimage.registration import phase_cross_correlation

_SMALLEST = 64  # side in pixels below which pictures say too little
_WINDOW = 512  # side in pixels of the middle part that is compared
_MIN_SHIFT = 2  # in pixels; a blur's path need not be centred on the sharp picture's moment
_MIN_GAIN = 0.6  # a shift is reported if it reduces the mean squared error to this share
_MIN_CORRELATION = 0.3  # of grey values; strongly blurred pairs have 0.8
_MIN_SHARPER = 1.15  # times the gradients of the sharp picture


def misalignment(blurred: np.ndarray, sharp: np.ndarray) -> str:
    """What is wrong with a pair of [H, W, 3] uint8 pictures of one size; "" if nothing is found."""
    first, second = _grey(blurred), _grey(sharp)
    if min(first.shape) < _SMALLEST or min(first.std(), second.std()) < 1:  # of 255
        return ""
    correlation = _correlation(first, second)
    for what, turned in (("turned by 180 degrees", second[::-1, ::-1]), ("mirrored", second[:, ::-1])):
        if _correlation(first, turned) > max(0.5, correlation + 0.2):
            return f"one side is {what}"
    rows, columns = shift(first, second)
    if max(abs(rows), abs(columns)) >= _MIN_SHIFT:
        return f"the sides are shifted by {abs(columns)} pixels across and {abs(rows)} down"
    if correlation < _MIN_CORRELATION:
        return f"the sides show different pictures (correlation {correlation:.2f})"
    ratio = _gradient(first) / max(_gradient(second), 1e-6)
    if ratio > _MIN_SHARPER:
        return f"the blurred side is sharper ({ratio:.2f} times the gradients); the sides may be swapped"
    return ""


def shift(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """(rows, columns) by which the second picture must move to match the first, (0, 0) if that is not much better."""
    found, *_ = phase_cross_correlation(first, second, normalization=None)
    rows, columns = (round(float(x)) for x in found)
    height, width = first.shape
    if (rows, columns) == (0, 0) or abs(rows) > height // 2 or abs(columns) > width // 2:
        return 0, 0
    mine = np.s_[max(0, rows) : height + min(0, rows), max(0, columns) : width + min(0, columns)]
    theirs = np.s_[max(0, -rows) : height + min(0, -rows), max(0, -columns) : width + min(0, -columns)]
    before, after = ((first - second)[mine] ** 2).mean(), ((first[mine] - second[theirs]) ** 2).mean()
    return (rows, columns) if after < _MIN_GAIN * before else (0, 0)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """float32 [h, w], the middle part with mean 0."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - _WINDOW) // 2), max(0, (width - _WINDOW) // 2)
    grey = pixels[top : top + _WINDOW, left : left + _WINDOW].astype(np.float32).mean(2)
    return grey - grey.mean()


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).mean() / (first.std() * second.std()))


def _gradient(grey: np.ndarray) -> float:
    """Mean gradient after a small mean filter, which takes away most of a sensor's noise."""
    rows, columns = np.gradient(uniform_filter(grey, 3))
    return float(np.hypot(rows, columns).mean())
