"""Motion blur: properties of paths and kernels, and the convolution against a plain loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deblur.data.blur import GAMMA, BlurSettings, blur, blurred, kernel, trajectory
from tests.datasets import picture

SETTINGS = BlurSettings()
seeds = st.integers(0, 2**31)


@given(seed=seeds)
def test_a_path_has_constant_speed_and_a_length_within_its_range(seed: int) -> None:
    path = trajectory(np.random.default_rng(seed), SETTINGS)
    strides = abs(np.diff(path))
    assert path[0] == 0
    assert np.allclose(strides, strides[0])
    assert SETTINGS.shortest <= strides.sum() * (1 + 1e-9)
    assert strides.sum() <= SETTINGS.longest * (1 + 1e-9)


@given(seed=seeds)
def test_a_kernel_is_a_distribution_around_its_centre(seed: int) -> None:
    weights = kernel(trajectory(np.random.default_rng(seed), SETTINGS))
    size = len(weights)
    assert weights.shape == (size, size)
    assert size % 2 == 1
    assert size <= SETTINGS.longest + 4
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    places = np.arange(size) - size // 2
    assert weights.sum(axis=0) @ places == pytest.approx(0, abs=1e-9)
    assert weights.sum(axis=1) @ places == pytest.approx(0, abs=1e-9)


def test_a_straight_path_of_known_length_gives_a_known_kernel() -> None:
    weights = kernel(np.linspace(-1, 1, 2001) + 0j)
    expected = np.zeros((5, 5))
    expected[2, 1:4] = 0.25, 0.5, 0.25  # a box of width 2 shared linearly between neighbouring pixels
    assert np.allclose(weights, expected, atol=1e-3)


def test_shakes_turn_the_path_back() -> None:
    calm = BlurSettings(shake=0.0, tremble=0.0, pull=0.0)
    path = trajectory(np.random.default_rng(0), calm)
    assert abs(path[-1]) == pytest.approx(abs(np.diff(path)).sum()), "nothing pulls: a straight line"
    shaken = BlurSettings(shake=100.0, tremble=0.0, pull=0.0)
    ends = [abs(trajectory(np.random.default_rng(seed), shaken)[-1]) for seed in range(20)]
    lengths = [abs(np.diff(trajectory(np.random.default_rng(seed), shaken))).sum() for seed in range(20)]
    assert np.median(np.divide(ends, lengths)) < 0.6


def test_blurring_equals_a_plain_loop() -> None:
    sharp = picture(3, 9, 11)
    weights = kernel(trajectory(np.random.default_rng(5), BlurSettings(shortest=4, longest=5)))
    radius = len(weights) // 2
    expected = np.zeros_like(sharp)
    for y in range(9):
        for x in range(11):
            light = np.zeros(3)
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    # Convolution flips the kernel; beyond the border the picture is mirrored, edge included.
                    row, column = mirrored(y - dy, 9), mirrored(x - dx, 11)
                    light += weights[dy + radius, dx + radius] * (sharp[row, column] / 255) ** GAMMA
            expected[y, x] = np.rint(255 * light ** (1 / GAMMA))
    difference = abs(blur(sharp, weights).astype(int) - expected.astype(int))
    assert difference.max() <= 1  # ties may round either way
    assert (difference == 0).mean() > 0.99


def mirrored(place: int, length: int) -> int:
    place %= 2 * length
    return place if place < length else 2 * length - 1 - place


@given(seed=seeds, level=st.integers(0, 255))
def test_a_flat_picture_stays_flat(seed: int, level: int) -> None:
    flat = np.full((20, 24, 3), level, np.uint8)
    assert np.array_equal(blurred(flat, seed), flat)


def test_the_blur_is_deterministic_in_the_seed() -> None:
    sharp = picture(1, 40, 50)
    assert np.array_equal(blurred(sharp, (1, 2)), blurred(sharp, (1, 2)))
    assert not np.array_equal(blurred(sharp, (1, 2)), blurred(sharp, (1, 3)))
