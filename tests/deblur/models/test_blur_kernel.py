"""The estimate of blur kernels: each formula against NumPy and SciPy, and the whole on pictures of known blur."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from deblur.models import blur_kernel
from deblur.models.blur_kernel import estimate_kernels, gradients, periodic, transfer_function


def discs(side: int, seed: int) -> np.ndarray:
    """[side, side] in [0, 1]: overlapping discs of random greys, a usual model of photographs' edges."""
    draw = np.random.default_rng(seed)
    picture = np.full((side, side), 0.5)
    rows, columns = np.indices(picture.shape)
    for _ in range(150):
        y, x, radius = draw.uniform(0, side), draw.uniform(0, side), 4 + 30 * draw.random() ** 2
        picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = draw.random()
    return picture


def hook(side: int) -> np.ndarray:
    """A kernel along a bent path, centred."""
    kernel = np.zeros((side, side))
    middle = side // 2
    kernel[middle - 2, middle - 5 : middle + 4] = 1
    kernel[middle - 2 : middle + 5, middle + 4] = 1.5
    kernel /= kernel.sum()
    shift = [round(middle - float((kernel * axis).sum())) for axis in np.indices(kernel.shape)]
    return np.roll(kernel, shift, (0, 1))


def blurred(picture: np.ndarray, kernel: np.ndarray) -> Tensor:
    return torch.from_numpy(scipy.ndimage.convolve(picture, kernel, mode="mirror")).float()[None]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_kernel_of_a_blurred_picture(seed: int) -> None:
    kernel, side = hook(21), 21
    found = estimate_kernels(blurred(discs(256, seed), kernel), side)[0].numpy()
    distances = [  # a shift of the kernel is the opposite shift of the picture
        np.abs(np.roll(found, (y, x), (0, 1)) - kernel).sum() for y in (-1, 0, 1) for x in (-1, 0, 1)
    ]
    assert min(distances) < 0.7, "two kernels that do not overlap are 2 apart"


def test_kernels_are_centred_positive_and_of_sum_one() -> None:
    kernels = estimate_kernels(torch.cat([blurred(discs(128, seed), hook(15)) for seed in (3, 4)]), 15)
    assert kernels.shape == (2, 15, 15)
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(2))
    for kernel in kernels.numpy():
        assert np.abs(np.subtract(scipy.ndimage.center_of_mass(kernel), 7)).max() <= 0.5 + 1e-5


def test_a_flat_picture_has_the_kernel_of_no_blur() -> None:
    (kernel,) = estimate_kernels(torch.full((1, 100, 120), 0.3))
    expected = torch.zeros_like(kernel)
    expected[22, 22] = 1
    assert torch.equal(kernel, expected)


def test_levels_double_the_pixels_and_end_at_the_whole() -> None:
    levels = blur_kernel._levels(45)
    assert levels[-1] == (1.0, 45)
    assert all(size % 2 == 1 for _, size in levels)
    assert levels[0][1] in (5, 7)
    for (coarse, _), (fine, _) in itertools.pairwise(levels):
        assert fine**2 == pytest.approx(2 * coarse**2)


def test_gradients_are_differences_and_their_divergence_the_adjoint() -> None:
    torch.manual_seed(0)
    picture, field = torch.rand(1, 5, 7).double(), torch.rand(1, 2, 5, 7).double()
    expected = [np.roll(picture[0], -1, axis) - picture[0].numpy() for axis in (1, 0)]
    np.testing.assert_allclose(gradients(picture)[0], expected)
    inner = (gradients(picture) * field).sum()
    torch.testing.assert_close(inner, (picture * blur_kernel._divergence(field)).sum())


def test_spectra_are_those_of_circular_convolution() -> None:
    torch.manual_seed(0)
    picture, kernel = torch.rand(1, 20, 22).double(), torch.rand(1, 5, 5).double()
    product = torch.fft.rfft2(picture) * transfer_function(kernel, 20, 22)
    expected = scipy.ndimage.convolve(picture[0].numpy(), kernel[0].numpy(), mode="wrap")
    np.testing.assert_allclose(torch.fft.irfft2(product, s=(20, 22))[0], expected)
    power = blur_kernel.gradient_power(20, 22, device=torch.device("cpu"))
    total = (torch.fft.rfft2(gradients(picture)).abs() ** 2).sum(1)
    torch.testing.assert_close(
        total, power * torch.fft.rfft2(picture).abs() ** 2, check_dtype=False, rtol=1e-5, atol=1e-5
    )


def test_the_kernel_between_two_pictures_is_that_of_dense_least_squares() -> None:
    torch.manual_seed(0)
    level = blur_kernel._Level(torch.rand(1, 16, 18).double(), 1.0, 5)
    edges = torch.rand_like(level.gradients)
    shifted = [
        np.roll(edges[0].numpy(), (y, x), (1, 2)).ravel() for y in range(-2, 3) for x in range(-2, 3)
    ]  # what each of the kernel's weights multiplies
    matrix = np.stack(shifted, axis=1)
    ridge = blur_kernel._RIDGE * np.eye(25)
    expected = np.linalg.solve(matrix.T @ matrix + ridge, matrix.T @ level.gradients[0].numpy().ravel())
    found = level.kernel_between(edges, 5)[0].numpy().ravel()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_noise_is_what_is_weak_or_in_a_small_part_apart() -> None:
    kernel = torch.from_numpy(np.random.default_rng(0).random((40, 21, 21)) ** 12)
    for given, found in zip(kernel, blur_kernel._without_noise(kernel), strict=True):
        strong = np.where(given > 0.05 * given.max(), given, 0)
        strong = strong / strong.sum()
        parts, count = scipy.ndimage.label(strong > 0, np.ones((3, 3)))
        weights = scipy.ndimage.sum(strong, parts, range(1, count + 1))
        kept = np.where(np.isin(parts, 1 + np.flatnonzero(weights >= 0.05)), strong, 0)
        np.testing.assert_allclose(found, kept / kept.sum(), atol=1e-6)


def spiral(side: int) -> np.ndarray:
    """A path of one pixel's width that winds to the middle: as long and as bent as a path can be."""
    mask, place, step = np.zeros((side + 4, side + 4), bool), np.array([2, 2]), np.array([0, 1])
    mask[:2], mask[-2:], mask[:, :2], mask[:, -2:] = True, True, True, True
    mask[tuple(place)] = True
    for _ in range(side * side):
        inside = (place + step >= 2).all() and (place + step < side + 2).all()
        ahead = tuple(place + 2 * step)
        if not inside or (mask[ahead] and min(ahead) >= 2 and max(ahead) < side + 2):
            step = np.array([step[1], -step[0]])
            if mask[tuple(place + step)]:
                break
        place = place + step
        mask[tuple(place)] = True
    return mask[2:-2, 2:-2]


@pytest.mark.parametrize("side", [5, 13, 45])
def test_parts_are_those_of_scipy_also_of_long_bent_paths(side: int) -> None:
    draw = np.random.default_rng(side)
    masks = [spiral(side), spiral(side)[::-1], *(draw.random((side, side)) < share for share in (0.1, 0.3, 0.4, 0.6))]
    found = blur_kernel._parts(torch.from_numpy(np.stack(masks))).view(-1, side, side).numpy()
    for mask, numbers in zip(masks, found, strict=True):
        expected, count = scipy.ndimage.label(mask, np.ones((3, 3)))
        assert len(set(zip(expected[mask], numbers[mask], strict=True))) == count == len(set(numbers[mask]))


def test_a_kernel_that_is_shifted_loses_what_leaves_the_square() -> None:
    kernel = torch.zeros(1, 7, 7)
    kernel[0, 0, 0], kernel[0, 0, 6] = 0.9, 0.1
    expected = torch.zeros(1, 7, 7)
    expected[0, 3, 2] = 1  # the middle of mass is at row 0, column 0.6; the light end would be at column 8
    assert torch.equal(blur_kernel._centred(kernel), expected)


@pytest.mark.parametrize("side", [96, 128, 320])
def test_each_direction_keeps_strong_edges_in_pictures_of_any_size(side: int) -> None:
    scale, size = blur_kernel._levels(45)[0]
    level = blur_kernel._Level(blurred(discs(side, 0), hook(21)), scale, size)
    across, down = level.gradients[0].numpy()
    strong = np.hypot(across, down) >= float(level.first_threshold(size))
    direction = (np.arctan2(down, across) % np.pi // (np.pi / 4)).clip(0, 3)
    wanted = min(20 * size, round(side * scale) ** 2 // 8)
    counts = [int((strong & (direction == nth)).sum()) for nth in range(4)]
    assert min(counts) in (wanted, wanted + 1)
    assert strong.mean() < 0.9


def test_pictures_become_periodic_without_a_jump() -> None:
    picture = torch.rand(1, 30, 40)
    wide = periodic(picture, margin=20)
    assert torch.equal(wide[:, :30, :40], picture)
    assert wide.shape[1] >= 50
    assert wide.shape[2] >= 60
    steps = (wide[0, 0, 39:] - wide[0, 0, 39:].roll(-1))[:-1]
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), atol=1e-5, rtol=0)
    torch.testing.assert_close(wide[0, 0, -1] - wide[0, 0, 0], steps.mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 16), (89, 96), (375, 384), (385, 400), (2000, 2000), (2017, 2048)]
)
def test_transforms_have_lengths_of_small_factors(length: int, expected: int) -> None:
    assert blur_kernel._fast_length(length) == expected
