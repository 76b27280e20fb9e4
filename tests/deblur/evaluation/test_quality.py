"""PSNR and SSIM against scikit-image."""

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import skimage.metrics
import torch

from deblur.evaluation.quality import psnr, ssim
from deblur.models.pixels import from_uint8, to_uint8


def _pair(height: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    sharp = skimage.data.astronaut()[:height, :width]
    noisy = sharp + np.random.default_rng(height).normal(0, noise, sharp.shape)
    return np.clip(noisy.round(), 0, 255).astype(np.uint8), sharp


def _batch(*pictures: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) for p in pictures])


def _reference_ssim(restored: np.ndarray, sharp: np.ndarray) -> float:
    return skimage.metrics.structural_similarity(
        sharp,
        restored,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )


@pytest.mark.parametrize(("height", "width"), [(11, 11), (12, 40), (97, 64)])
@pytest.mark.parametrize("noise", [1.0, 20.0, 200.0])
def test_both_equal_scikit_image(height: int, width: int, noise: float) -> None:
    restored, sharp = _pair(height, width, noise)
    expected = skimage.metrics.peak_signal_noise_ratio(sharp, restored, data_range=255)
    assert psnr(_batch(restored), _batch(sharp)).item() == pytest.approx(expected, abs=1e-9)
    assert ssim(_batch(restored), _batch(sharp)).item() == pytest.approx(_reference_ssim(restored, sharp), abs=1e-9)


def test_every_picture_of_a_batch_has_its_own_value() -> None:
    pairs = [_pair(32, 48, noise) for noise in (2.0, 30.0)]
    restored, sharp = _batch(*(r for r, _ in pairs)), _batch(*(s for _, s in pairs))
    np.testing.assert_allclose(ssim(restored, sharp), [_reference_ssim(*pair) for pair in pairs], atol=1e-9)
    assert psnr(restored, sharp)[0] > psnr(restored, sharp)[1] + 15


def test_equal_pictures_have_infinite_psnr_and_ssim_one() -> None:
    _, sharp = _pair(32, 32, 0.0)
    assert psnr(_batch(sharp), _batch(sharp)).item() == float("inf")
    assert ssim(_batch(sharp), _batch(sharp)).item() == pytest.approx(1, abs=1e-12)


def test_a_difference_of_one_level_is_48_decibels() -> None:
    grey = torch.full((1, 3, 16, 16), 128, dtype=torch.uint8)
    assert psnr(grey, grey + 1).item() == pytest.approx(20 * np.log10(255))


def test_a_picture_smaller_than_the_window_is_refused_with_its_size() -> None:
    small = torch.zeros(1, 3, 10, 40, dtype=torch.uint8)
    with pytest.raises(ValueError, match="40x10"):
        ssim(small, small)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_floats_and_unequal_sizes_are_refused(measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    picture = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        measure(picture.float(), picture)
    with pytest.raises(ValueError, match="16, 15"):
        measure(picture[..., :15], picture)


def test_all_256_levels_survive_the_round_trip_to_floats() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    floats = from_uint8(levels)
    assert floats.dtype == torch.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), levels)


def test_floats_are_rounded_not_truncated_and_clipped() -> None:
    levels = torch.tensor([99.4, 99.6, -3.0, 258.0])
    assert to_uint8(levels / 127.5 - 1).tolist() == [99, 100, 0, 255]
