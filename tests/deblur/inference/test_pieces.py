"""Pieces in batches equal single pieces, each with the statistics of its own picture."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deblur.inference.pieces import Piece, PieceRunner, statistics_of
from deblur.models.generator import ResNetGenerator, UNetGenerator
from deblur.models.pixels import from_uint8
from tests.datasets import picture


def _floats(pixels: np.ndarray) -> Tensor:
    return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None])


def _generator(norm: str, kind: type[nn.Module] = ResNetGenerator) -> nn.Module:
    torch.manual_seed(0)
    more = {"blocks": 2} if kind is ResNetGenerator else {"depth": 4}
    return kind(filters=4, norm=norm, dropout=0.5, upsampling="transposed", output="clamp", **more).eval()


@pytest.mark.parametrize("kind", [ResNetGenerator, UNetGenerator])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_a_piece_in_a_batch_equals_the_generators_output(norm: str, kind: type[nn.Module]) -> None:
    generator = _generator(norm, kind)
    pixels = [picture(seed, 40, 52) for seed in range(3)]
    found = PieceRunner(generator, "cpu").run([Piece(pixels=each) for each in pixels])
    with torch.inference_mode():
        for each, restored in zip(pixels, found, strict=True):
            torch.testing.assert_close(restored, generator(_floats(each))[0], atol=1e-5, rtol=0)


def test_the_generator_is_not_modified_and_shares_its_weights() -> None:
    generator = _generator("instance")
    runner = PieceRunner(generator, "cpu")
    assert sum(isinstance(module, nn.InstanceNorm2d) for module in generator.modules()) == 9
    assert generator.state_dict().keys() == _generator("instance").state_dict().keys()
    before = runner.run([Piece(pixels=picture(0, 16, 16))])[0]
    with torch.no_grad():
        generator.last[1].bias.add_(0.5)
    assert not torch.equal(runner.run([Piece(pixels=picture(0, 16, 16))])[0], before)


@pytest.mark.parametrize("affine", [False, True])
def test_measured_sums_are_those_of_the_norms_input(affine: bool) -> None:
    norm = nn.InstanceNorm2d(3, affine=affine).eval()
    pixels = picture(1, 24, 36)
    (sums,) = PieceRunner(norm, "cpu").run([Piece(pixels=pixels, measured=True)])
    values = _floats(pixels)[0].double().flatten(1)
    expected = torch.stack([values.sum(1), values.square().sum(1), torch.full((3,), 24.0 * 36)])
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
def test_pieces_are_normalised_with_their_own_pictures_statistics(affine: bool) -> None:
    norm = nn.InstanceNorm2d(3, affine=affine).eval()
    if affine:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    runner = PieceRunner(norm, "cpu")
    pictures = [picture(seed, 32, 48) for seed in (2, 3)]
    halves = []
    for pixels in pictures:
        measured = runner.run([Piece(pixels=half, measured=True) for half in np.split(pixels, 2, axis=1)])
        halves.append(Piece(pixels=pixels[:, :24], statistics=statistics_of(torch.stack(measured).sum(0))))
    with torch.inference_mode():
        for pixels, restored in zip(pictures, runner.run(halves), strict=True):
            torch.testing.assert_close(restored, norm(_floats(pixels))[0, ..., :24], atol=1e-4, rtol=0)


def test_given_statistics_are_cleared_after_the_batch() -> None:
    runner = PieceRunner(_generator("instance"), "cpu")
    plain = Piece(pixels=picture(4, 20, 20))
    before = runner.run([plain])[0]
    statistics = torch.stack([torch.ones(runner.num_channels), torch.full((runner.num_channels,), 4.0)])
    assert not torch.allclose(runner.run([Piece(pixels=plain.pixels, statistics=statistics)])[0], before)
    assert torch.equal(runner.run([plain])[0], before)
