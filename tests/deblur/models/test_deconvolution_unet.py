"""The U-Net with deconvolved pictures: its start, Wiener's filter against its equation, windows, and gates."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch

from deblur.config.recipes import GeneratorRecipe, Recipe
from deblur.models import deconvolution_unet
from deblur.models.build import build_generator
from deblur.models.deconvolution_unet import DeconvolutionUNet, deconvolve, wiener
from tests.deblur.models.test_blur_kernel import discs, hook

LEVELS = {"encoder_blocks": (1,), "middle_blocks": 1, "decoder_blocks": (1,)}


def pictures(side: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """(blurred, sharp), each [1, 3, side, side] in [-1, 1]."""
    sharp = np.stack([discs(side, seed) for seed in (0, 0, 1)]) * 2 - 1
    blurred = np.stack([scipy.ndimage.convolve(plane, hook(15), mode="mirror") for plane in sharp])
    return torch.from_numpy(blurred).float()[None], torch.from_numpy(sharp).float()[None]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 30), (100, 95)])
def test_it_starts_as_the_identity_for_any_size(height: int, width: int) -> None:
    recipe = Recipe(generator=GeneratorRecipe(architecture="deconvolution-unet", filters=4, **LEVELS))
    torch.manual_seed(0)
    given = torch.rand(2, 3, height, width) * 2 - 1
    assert torch.equal(build_generator(recipe)(given), given)


def test_gates_take_from_each_deconvolved_picture() -> None:
    network = DeconvolutionUNet(filters=4, **LEVELS)
    blurred, _ = pictures()
    sharp, robust = deconvolve(blurred)
    assert not torch.equal(sharp, robust)
    for gate, expected in enumerate((sharp, robust)):
        assert (expected - blurred).abs().mean() > 0.01
        with torch.no_grad():
            network.last.bias.zero_()
            network.last.bias[12 + 4 * gate : 16 + 4 * gate] = 1  # pixel-unshuffled: 4 for each channel
            taken = network(blurred)
        torch.testing.assert_close(taken, expected, atol=1e-5, rtol=1e-5)


def test_the_true_kernel_makes_a_blurred_picture_sharp() -> None:
    blurred, sharp = pictures()
    (restored,) = wiener(blurred, torch.from_numpy(hook(15)).float()[None], (1e-3,))
    assert psnr(restored, sharp) > psnr(blurred, sharp) + 5


def test_the_filter_solves_its_equation() -> None:
    """The minimum has no slope: K'(Kx - b) + r (D'Dx + 0.02 x) = 0."""
    torch.manual_seed(0)
    regularisation = 0.1
    blurred, kernel = torch.rand(1, 3, 40, 50) - 0.5, torch.from_numpy(hook(15)).float()[None]
    border = deconvolution_unet._BORDER
    (found,) = wiener(blurred, kernel, (regularisation,))
    wide = np.pad(blurred[0].numpy(), ((0, 0), (border, border), (border, border)), mode="reflect")
    circular = np.stack([scipy.ndimage.convolve(plane, kernel[0].numpy(), mode="wrap") for plane in wide])
    taper = [0.5 - 0.5 * np.cos(np.pi * np.minimum(1, (np.arange(n // 2) + 0.5) / border)) for n in wide.shape[1:]]
    down, across = (np.concatenate([half, half[::-1]]) for half in taper)
    tapered = circular + np.outer(down, across) * (wide - circular)
    transfer = np.fft.fft2(np.roll(np.pad(kernel[0].numpy(), ((0, 89), (0, 99))), (-7, -7), (0, 1)))
    row, column = np.meshgrid(*(2 - 2 * np.cos(2 * np.pi * np.arange(n) / n) for n in wide.shape[1:]), indexing="ij")
    denominator = np.abs(transfer) ** 2 + regularisation * (row + column + deconvolution_unet._TIKHONOV)
    expected = np.fft.ifft2(transfer.conj() * np.fft.fft2(tapered) / denominator).real
    np.testing.assert_allclose(found[0], expected[:, border:-border, border:-border].clip(-1.5, 1.5), atol=1e-4)


@pytest.mark.parametrize("side", [64, 90])
def test_every_weight_learns_in_bfloat16(side: int) -> None:
    torch.manual_seed(0)
    network = DeconvolutionUNet(filters=4, **LEVELS)
    torch.nn.init.normal_(network.last.weight, 0, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        network(pictures(side)[0].repeat(2, 1, 1, 1)).float().square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_a_network_in_bfloat16_takes_pictures_in_bfloat16() -> None:
    network = DeconvolutionUNet(filters=4, **LEVELS).bfloat16()
    assert network(pictures(96)[0].bfloat16()).dtype is torch.bfloat16


def test_a_picture_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    two = torch.cat([pictures()[0], torch.rand(1, 3, 128, 128)])
    for together, alone in zip(deconvolve(two), deconvolve(two[1:]), strict=True):
        assert torch.equal(together[1:], alone)


def test_the_middle_of_a_window_shows_its_kernel() -> None:
    blurred, _ = pictures(600)
    changed = blurred.clone()
    changed[..., :40, :] = changed[..., :40, :].flip(3)
    expected, found = deconvolve(blurred)[1], deconvolve(changed)[1]
    torch.testing.assert_close(found[..., 150:, :], expected[..., 150:, :], atol=0.01, rtol=0)


def test_a_small_picture_is_not_deconvolved() -> None:
    small = torch.rand(1, 3, 89, 200)
    assert all(torch.equal(picture, small) for picture in deconvolve(small))


@pytest.mark.parametrize(("length", "count"), [(1, 1), (1215, 1), (1216, 2), (1983, 2), (1984, 3), (5000, 6)])
def test_windows_cover_a_side_and_their_weights_are_positive(length: int, count: int) -> None:
    total, spans = torch.zeros(length), deconvolution_unet._spans(length)
    assert len(spans) == count
    for span in spans:
        assert span.stop - span.start == spans[0].stop
        assert length < 1216 or 640 <= span.stop - span.start < 1216
        total[span] += deconvolution_unet._ramp(span, length, torch.device("cpu"))
    assert total.min() > 0
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert all(63 <= before.stop - after.start <= 66 for before, after in itertools.pairwise(spans))


def test_neighbouring_windows_fade_into_each_other() -> None:
    windows = [(slice(0, 100), slice(0, 300)), (slice(0, 100), slice(236, 536))]
    parts = torch.stack([torch.full((1, 3, 100, 300), value) for value in (0.0, 1.0)])
    blended = deconvolution_unet._blended(parts, windows, 100, 536)[0, 0, 50]
    assert blended[:236].max() == 0
    assert blended[300:].min() == 1
    assert blended[236:300].diff().min() > 0
    assert blended.diff().max() < 0.03


def test_each_window_has_its_own_kernel() -> None:
    """Two halves that moved in different directions."""
    sharp = np.concatenate([discs(880, seed)[:200] for seed in (2, 3)], axis=1)
    across = scipy.ndimage.uniform_filter1d(sharp, 13, axis=1)
    down = scipy.ndimage.uniform_filter1d(sharp, 13, axis=0)
    mixed = np.concatenate([across[:, :880], down[:, 880:]], axis=1)
    given, target = (torch.from_numpy(array).float().expand(1, 3, -1, -1) * 2 - 1 for array in (mixed, sharp))
    *_, restored = deconvolve(given)
    for part in (slice(20, 820), slice(940, 1740)):
        assert psnr(restored[..., part], target[..., part]) > psnr(given[..., part], target[..., part]) + 1
