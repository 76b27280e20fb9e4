"""Pairs blurred with one kernel each, against scipy.ndimage."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage

from benchmarks.kernel_pairs import Settings, blur, centred, measure, shake_kernel
from tests.datasets import picture


@pytest.mark.parametrize("linear", [True, False])
def test_a_photograph_is_convolved_and_mirrored_at_the_border(linear: bool) -> None:
    sharp, kernel = picture(0, 40, 50), centred(np.random.default_rng(0).random((7, 5)))
    gamma = 2.2 if linear else 1.0
    light = scipy.ndimage.convolve((sharp / 255) ** gamma, kernel[..., None], mode="reflect") ** (1 / gamma)
    assert np.abs(blur(sharp, kernel, linear) - 255 * light).max() <= 0.51


def test_a_kernel_off_its_centre_does_not_shift_the_picture() -> None:
    kernel = np.zeros((9, 9))
    kernel[7, 1] = 3.0
    sharp = picture(0, 30, 30)
    assert np.array_equal(blur(sharp, centred(kernel), False), sharp)


def test_each_photograph_becomes_a_pair(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for nth in range(3):
        PIL.Image.fromarray(picture(nth, 60, 80)).save(tmp_path / "photos" / f"{nth}.png")
    np.savez(tmp_path / "psf.npz", a=np.ones((3, 3)), b=np.eye(5))
    settings = Settings(
        photos=str(tmp_path / "photos"), kernels=str(tmp_path / "psf.npz"), out=str(tmp_path / "out"), side=50
    )
    assert measure(settings)["pairs"] == 3
    for folder in ("blurred", "sharp"):
        assert [path.name for path in sorted((tmp_path / "out" / folder).iterdir())] == ["0.png", "1.png", "2.png"]
    assert PIL.Image.open(tmp_path / "out" / "sharp" / "1.png").size == (50, 50)


@pytest.mark.parametrize("length", [5, 40])
def test_kernels_of_shake_are_as_long_as_the_path_allows_and_differ(length: int) -> None:
    kernels = [shake_kernel(length, nth) for nth in range(4)]
    for kernel in kernels:
        extent = np.ptp(np.argwhere(kernel > 0), axis=0).max()
        assert length / 20 < extent <= length + 2
        assert kernel.sum() == pytest.approx(1)
    assert len({kernel.tobytes() for kernel in kernels}) == 4
    assert np.array_equal(kernels[1], shake_kernel(length, 1))
