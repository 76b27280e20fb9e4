"""The fast U-Net: its size, any side, identity at the start, a plain reading of it, and its reach."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deblur.config.presets import fidelity
from deblur.inference.tiles import MARGIN
from deblur.models.build import build_generator
from deblur.models.fast_unet import FastUNet


def small(filters: int = 4) -> FastUNet:
    """Random weights everywhere, also in the last layer."""
    torch.manual_seed(0)
    network = FastUNet(filters=filters, encoder_blocks=(2, 1), middle_blocks=1, decoder_blocks=(1, 2))
    torch.nn.init.normal_(network.last.weight, 0, 0.1)
    return network.double()


def test_the_recipe_of_the_embedded_model_has_the_published_size() -> None:
    assert sum(p.numel() for p in build_generator(fidelity()).parameters()) == 923_772


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 30), (64, 48)])
def test_it_starts_as_the_identity_for_any_size(height: int, width: int) -> None:
    pictures = torch.rand(2, 3, height, width) * 2 - 1
    assert torch.equal(build_generator(fidelity())(pictures), pictures)


def test_it_is_what_its_docstring_says() -> None:
    """The same network written down layer by layer in functions."""
    network, picture = small(), torch.rand(1, 3, 21, 30).double() * 2 - 1
    w = network.state_dict()

    def conv(x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **how)

    def blocks(x: Tensor, name: str, count: int) -> Tensor:
        for n in range(count):
            hidden = F.relu(conv(x, f"{name}.{n}.change.0", padding=1))
            x = x + conv(hidden, f"{name}.{n}.change.2", padding=1)
        return x

    def up(x: Tensor, nth: int) -> Tensor:
        return F.conv_transpose2d(x, w[f"ups.{nth}.weight"], w[f"ups.{nth}.bias"], stride=2)

    padded = F.pad(picture, (0, 2, 0, 3), mode="replicate")  # to multiples of 8
    half = blocks(conv(F.pixel_unshuffle(padded, 2), "first", padding=1), "encoders.0", 2)
    quarter = blocks(conv(half, "downs.0", stride=2), "encoders.1", 1)
    eighth = blocks(conv(quarter, "downs.1", stride=2), "middle", 1)
    x = blocks(up(eighth, 0) + quarter, "decoders.0", 1)
    x = blocks(up(x, 1) + half, "decoders.1", 2)
    expected = picture + F.pixel_shuffle(conv(x, "last", padding=1), 2)[..., :21, :30]
    torch.testing.assert_close(network(picture), expected)


def test_no_pixel_reaches_further_than_the_context_of_a_tile() -> None:
    network = build_generator(fidelity()).double()
    for parameter in network.parameters():  # positive everywhere: no path cancels
        torch.nn.init.uniform_(parameter, 0, 0.01)
    picture = torch.zeros(1, 3, 8, 8 * MARGIN).double()
    other = picture.clone()
    other[..., 4 * MARGIN] = 1
    changed = (network(picture) != network(other)).any(dim=1)[0].any(dim=0).nonzero()
    assert changed.min() > 4 * MARGIN - MARGIN
    assert changed.max() < 4 * MARGIN + MARGIN
