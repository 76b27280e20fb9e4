"""Camera blur: ranges, alignment, light and shares of the random pairs, and frames averaged by a plain loop."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from skimage.registration import phase_cross_correlation

from deblur.data.blur import kernel
from deblur.data.camera_blur import (
    CameraBlurSettings,
    Layer,
    averaged,
    boosted,
    camera_blurred,
    convolved,
    exposed,
    moving_layers,
    rotations,
    shake_path,
    smooth_path,
    soft_mask,
    to_linear,
    to_stored,
    translations,
)
from tests.datasets import picture

DEFAULT = CameraBlurSettings()
# Only the motion, in linear light with gamma 2.2.
BARE = replace(DEFAULT, unblurred_share=0, highlight_share=0, noise_share=0, jpeg_share=0, linear_share=1, srgb_share=0)
SHAKE, FRAMES = replace(BARE, shake_share=1), replace(BARE, shake_share=0)
KINDS = pytest.mark.parametrize("kind", [SHAKE, FRAMES], ids=["shake", "frames"])
seeds = st.integers(0, 2**31)


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(picture(seed, height, width)).permute(2, 0, 1).float() / 255


# ---- seeds


def test_the_result_depends_on_the_seed_alone() -> None:
    sharp = picture(0, 60, 80)
    keys = [(7, 8, variant) for variant in range(12)]
    one_by_one = [camera_blurred(sharp, key) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        in_threads = list(pool.map(lambda key: camera_blurred(sharp, key), reversed(keys)))[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(one_by_one, in_threads, strict=True))
    assert len({result.tobytes() for result in one_by_one}) == len(keys)


def test_the_number_of_threads_does_not_change_bits() -> None:
    sharp = torch.from_numpy(picture(0, 200, 260)).permute(2, 0, 1).float() / 255  # large enough to be split
    settings = replace(DEFAULT, shake_share=0.5, highlight_share=0.5, depth_share=0.5, object_share=0.5)

    def results(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        layers = [moving_layers(draw(seed), settings, 200, 260) for seed in range(3)]
        moves = [partial(averaged, layers=layer) for layer in layers]
        moves += [partial(convolved, weights=kernel(shake_path(draw(seed), settings, 1.0))) for seed in range(3)]
        return [exposed(sharp, move, draw(seed), settings) for seed, move in enumerate(moves)]

    before = torch.get_num_threads()
    try:
        one, *others = (results(threads) for threads in (1, 2, 3))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in others for a, b in zip(one, other, strict=True))


def test_the_seed_of_the_motion_does_not_depend_on_noise_and_jpeg() -> None:
    sharp = picture(0, 60, 80)
    clean = replace(FRAMES, shake_share=0.5)
    noisy = replace(clean, noise_share=1.0, read_noise=(0.0, 1e-6), shot_noise=(0.0, 1e-6))
    for seed in range(4):
        difference = camera_blurred(sharp, seed, clean).astype(int) - camera_blurred(sharp, seed, noisy)
        assert abs(difference).max() <= 1  # rounding


@KINDS
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (40, 200), (97, 64)])
def test_any_size_is_kept(kind: CameraBlurSettings, height: int, width: int) -> None:
    result = camera_blurred(picture(0, height + 1, width + 1)[:height, :width], 0, kind)
    assert result.shape == (height, width, 3)
    assert result.dtype == np.uint8


# ---- motion


@given(seed=seeds, scale=st.sampled_from([1.0, 3.0]))
def test_a_shake_is_as_long_as_its_range_and_scales_with_the_picture(seed: int, scale: float) -> None:
    length = abs(np.diff(shake_path(draw(seed), DEFAULT, scale))).sum()
    lower, upper = (scale * end for end in DEFAULT.shake_length)
    # Resampling cuts the path's corners.
    assert 0.8 * lower <= length <= upper * (1 + 1e-9)


def test_a_shake_dwells_at_some_places_longer() -> None:
    speeds = [abs(np.diff(shake_path(draw(seed), replace(DEFAULT, dwell=(1.0, 1.0)), 1.0))) for seed in range(10)]
    assert min(np.percentile(speed, 95) / np.percentile(speed, 5) for speed in speeds) > 3
    steady = abs(np.diff(shake_path(draw(0), replace(DEFAULT, dwell=(0.0, 0.0)), 1.0)))
    assert np.allclose(steady, steady.mean(), rtol=1e-6)


@given(seed=seeds, count=st.sampled_from([7, 15, 45]), length=st.floats(0, 40))
def test_a_smooth_path_has_its_length_and_is_at_rest_in_the_middle(seed: int, count: int, length: float) -> None:
    path = smooth_path(draw(seed), count, length)
    assert path[count // 2] == 0
    assert abs(np.diff(path)).sum() == pytest.approx(length)


@given(seed=seeds)
@hypothesis_settings(max_examples=50, deadline=None)
def test_frames_stay_within_their_ranges_and_the_middle_one_is_the_sharp_picture(seed: int) -> None:
    everything = replace(DEFAULT, depth_share=1, object_share=1)
    layers = moving_layers(draw(seed), everything, 720, 2560)
    camera, near, *objects = layers
    count = len(camera.homographies)
    assert count in {*range(7, 16, 2), *range(21, 46, 6)}  # as drawn, or three times as many
    assert 1 <= len(objects) <= 2
    scale = 2560 / 1280
    centre = camera.homographies[:, :2, 2] / camera.homographies[:, 2:, 2]
    assert np.linalg.norm(np.diff(centre, axis=0), axis=1).sum() <= scale * 40 * 1.001
    roll = np.arctan2(camera.homographies[:, 1, 0], camera.homographies[:, 0, 0])
    assert np.ptp(roll) <= np.radians(1.05)  # the perspective adds a little
    for layer in layers:
        assert np.allclose(layer.homographies[count // 2], np.eye(3), atol=1e-12)
        assert np.linalg.norm(np.diff(layer.homographies[:, :2, 2], axis=0), axis=1).sum() <= scale * 80 * 1.001
    assert near.mask is not None
    assert camera.mask is None


@given(seed=seeds, blob=st.booleans())
@hypothesis_settings(max_examples=30, deadline=None)
def test_a_mask_is_soft_and_has_both_sides(seed: int, blob: bool) -> None:
    mask = soft_mask(draw(seed), 90, 160, blob=blob)
    assert mask.shape == (90, 160)
    assert mask.min() >= 0
    assert mask.max() <= 1
    assert mask.min() < 0.01
    assert mask.max() > 0.99


# ---- blur


@pytest.mark.parametrize("direction", [1 + 0j, 1j, 0.6 + 0.8j])
def test_frames_along_a_straight_line_equal_the_convolution_with_its_kernel(direction: complex) -> None:
    picture_ = tensor(2, 48, 61)
    path = direction * np.linspace(-4, 4, 9)
    frames = averaged(picture_, [Layer(homographies=translations(path))])
    # A frame shows what lies at its shift; convolution looks in the opposite direction, but the path is symmetric.
    assert torch.allclose(frames, convolved(picture_, kernel(path)), atol=2e-5)


def test_frames_equal_a_plain_loop_over_warped_layers() -> None:
    sharp, mask = tensor(3, 30, 41), soft_mask(draw(0), 30, 41, blob=True)
    path, roll = smooth_path(draw(1), 7, 5.0), np.linspace(-0.05, 0.05, 7)
    camera, own = rotations(path, roll, 50.0), translations(smooth_path(draw(2), 7, 6.0))
    y, x = np.mgrid[:30, :41]
    places = np.stack([x - 20, y - 14.5, np.ones((30, 41))])
    expected = np.zeros((3, 30, 41))
    for back, front in zip(camera, own, strict=True):
        behind, before = (warped(sharp.numpy(), matrix, places) for matrix in (back, front))
        opacity = warped(mask[None].numpy(), front, places)
        expected += (behind + opacity * (before - behind)) / 7
    result = averaged(sharp, [Layer(homographies=camera), Layer(homographies=own, mask=mask)])
    assert abs(result.numpy() - expected).max() < 1e-3


def warped(planes: np.ndarray, homography: np.ndarray, places: np.ndarray) -> np.ndarray:
    column, row, depth = np.einsum("ij,jyx->iyx", homography, places)
    where = row / depth + (planes.shape[1] - 1) / 2, column / depth + (planes.shape[2] - 1) / 2
    return np.stack([scipy.ndimage.map_coordinates(plane, where, order=1, mode="reflect") for plane in planes])


def test_a_rotation_shifts_the_centre_by_its_path_and_turns_by_its_roll() -> None:
    (matrix,) = rotations(np.array([3 - 4j]), np.array([0.01]), focal=1000.0)
    assert np.allclose((matrix @ [0, 0, 1])[:2] / matrix[2, 2], [3, -4], atol=0.01)
    assert np.arctan2(matrix[1, 0], matrix[0, 0]) == pytest.approx(0.01, abs=1e-4)


def test_a_fast_path_is_sampled_more_often_than_a_slow_one() -> None:
    counts = {
        length: len(moving_layers(draw(0), replace(FRAMES, frames=(7, 7), **fixed(length)), 720, 1280)[0].homographies)
        for length in (1.0, 40.0)
    }
    assert counts == {1.0: 7, 40.0: 21}


def fixed(length: float) -> dict[str, object]:
    """Settings of a path of this length, without roll or other layers."""
    return {"frames_length": (length, length), "roll_degrees": (0.0, 0.0), "depth_share": 0, "object_share": 0}


@KINDS
def test_blurred_and_sharp_are_aligned(kind: CameraBlurSettings) -> None:
    for seed in range(6):
        sharp = picture(seed, 120, 200)
        # GOPRO's middle frame is the middle of the time, not of the path: an accelerated path is off its centre.
        calm = replace(kind, shake_length=(3.0, 9.0), frames_length=(0.0, 2.0), depth_share=0, object_share=0)
        blurred = camera_blurred(sharp, seed, calm)
        shift, *_ = phase_cross_correlation(sharp.mean(axis=2), blurred.mean(axis=2), upsample_factor=20)
        assert abs(shift).max() <= 0.5, seed


@KINDS
def test_motion_keeps_the_mean_brightness_in_linear_light(kind: CameraBlurSettings) -> None:
    for seed in range(6):
        sharp = picture(seed, 120, 200)
        blurred = camera_blurred(sharp, seed, kind)
        both = (torch.from_numpy(side / 255.0) for side in (sharp, blurred))
        before, after = (float(to_linear(side, srgb=False).mean()) for side in both)
        assert after == pytest.approx(before, rel=0.02)
        assert not np.array_equal(blurred, sharp)


@KINDS
@pytest.mark.parametrize("level", [0, 40, 255])
def test_a_flat_picture_stays_flat_up_to_its_border(kind: CameraBlurSettings, level: int) -> None:
    flat = np.full((64, 90, 3), level, np.uint8)
    for seed in range(3):
        assert np.array_equal(camera_blurred(flat, seed, kind), flat)


def test_longer_paths_blur_more() -> None:
    sharp = picture(0, 180, 320)
    errors = [
        np.square(camera_blurred(sharp, 1, replace(FRAMES, **fixed(length))).astype(float) - sharp).mean()
        for length in (0.0, 10.0, 40.0)
    ]
    assert errors[0] == 0
    assert errors[0] < errors[1] < errors[2]


# ---- light and sensor


@pytest.mark.parametrize("srgb", [False, True])
def test_light_and_stored_values_are_inverse(srgb: bool) -> None:
    stored = torch.linspace(0, 2, 2001)
    assert torch.allclose(to_stored(to_linear(stored, srgb), srgb), stored, atol=1e-5)
    assert float(to_linear(torch.tensor(1.0), srgb)) == pytest.approx(1)
    assert float(to_linear(torch.tensor(0.5), srgb)) == pytest.approx(0.21404 if srgb else 0.5**2.2, abs=1e-4)


def test_only_what_is_nearly_white_is_boosted() -> None:
    levels = torch.linspace(0, 1, 101).expand(3, 1, 101)
    bright = boosted(levels, 4.0, 0.7)
    assert torch.equal(bright[..., :70], levels[..., :70])
    assert float(bright[0, 0, -1]) == pytest.approx(4)
    assert (bright.diff() > 0).all()


@KINDS
def test_a_highlight_leaves_a_saturated_trail(kind: CameraBlurSettings) -> None:
    night = np.full((90, 160, 3), 10, np.uint8)
    night[42:48, 76:84] = 255  # wider than the path is long: without a boost the trail's middle is white too
    plain = replace(kind, shake_length=(7.5, 7.5), **fixed(7.5))
    lit = replace(plain, highlight_share=1, highlight_factor=(4.0, 4.0))
    for seed in range(4):
        white, boosted_white = ((camera_blurred(night, seed, which) == 255).all(axis=2).sum() for which in (plain, lit))
        assert boosted_white > white, seed
        assert camera_blurred(night, seed, lit).astype(int).sum() > camera_blurred(night, seed, plain).astype(int).sum()


def test_the_average_of_black_and_white_is_brighter_in_linear_light_than_as_stored() -> None:
    edge = np.zeros((40, 60, 3), np.uint8)
    edge[:, 30:] = 255
    stored = replace(FRAMES, linear_share=0, **fixed(80.0))
    sums = [camera_blurred(edge, 3, which).astype(int).sum() for which in (replace(stored, linear_share=1), stored)]
    assert sums[0] > sums[1]


def test_unblurred_pairs_have_their_share_and_only_noise_and_jpeg() -> None:
    sharp = picture(0, 32, 40)
    clean = replace(DEFAULT, noise_share=0, jpeg_share=0)
    same = sum(np.array_equal(camera_blurred(sharp, (0, nth), clean), sharp) for nth in range(400))
    assert 14 <= same <= 48  # 28 expected, four standard deviations
    assert np.array_equal(camera_blurred(sharp, 0, replace(clean, unblurred_share=1)), sharp)
    assert not np.array_equal(camera_blurred(sharp, 0, replace(DEFAULT, unblurred_share=1, jpeg_share=1)), sharp)


def test_noise_has_the_drawn_deviation() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    still = replace(DEFAULT, unblurred_share=1, jpeg_share=0, noise_share=1)
    read = camera_blurred(grey, 0, replace(still, read_noise=(0.02, 0.02), shot_noise=(0.0, 0.0)))
    shot = camera_blurred(grey, 0, replace(still, read_noise=(0.0, 0.0), shot_noise=(0.02, 0.02)))
    assert read.std() == pytest.approx(0.02 * 255, rel=0.03)
    assert shot.std() == pytest.approx(0.02 * 255 * np.sqrt(128 / 255), rel=0.03)


def test_a_lower_jpeg_quality_is_further_from_the_picture() -> None:
    sharp = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    still = replace(DEFAULT, unblurred_share=1, noise_share=0, jpeg_share=1)
    errors = [
        np.square(camera_blurred(sharp, 0, replace(still, jpeg_quality=(q, q))).astype(float) - sharp).mean()
        for q in (60, 98)
    ]
    assert errors[0] > errors[1] > 0
