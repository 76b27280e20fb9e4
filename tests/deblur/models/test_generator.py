"""Generators against published parameter counts and a functional reimplementation of the papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deblur.models.generator import ResNetGenerator, UNetGenerator

SMALL = {"norm": "instance", "dropout": 0.0, "upsampling": "transposed", "output": "clamp"}


def _resnet(**changes):
    return ResNetGenerator(**{"filters": 2, "blocks": 1, **SMALL, **changes})


def _unet(**changes):
    return UNetGenerator(**{"filters": 2, "depth": 3, **SMALL, **changes})


BOTH = pytest.mark.parametrize("make", [_resnet, _unet])


def _pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _enlarge(network):
    """With initial weights of 0.02 activations are too small to show mistakes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return network


def _counts(network):
    """Parameters of each layer that has any, in the order of the network's definition."""
    return [n for m in network.modules() if (n := sum(p.numel() for p in m.parameters(recurse=False)))]


def _last_convolution(network):
    return network.last[1] if isinstance(network, ResNetGenerator) else network.ups[0][1]


def _first_convolution(network):
    return network.first if isinstance(network, ResNetGenerator) else network.downs[0]


def test_resnet_has_the_published_number_of_parameters_layer_by_layer():
    blocks = [590_080] * 18  # 3*3*256*256 + 256, twice in each of nine blocks
    by_hand = [9_472, 73_856, 295_168, *blocks, 295_040, 73_792, 9_411]
    assert _counts(ResNetGenerator(**SMALL)) == by_hand
    assert sum(by_hand) == 11_378_179  # as pytorch-CycleGAN-and-pix2pix prints it for resnet_9blocks


def test_resnet_with_batchnorm_adds_two_weights_per_channel():
    with_norm = sum(_counts(ResNetGenerator(**SMALL | {"norm": "batch"})))
    assert with_norm - 11_378_179 == 2 * (64 + 128 + 256 + 18 * 256 + 128 + 64)


def test_unet_has_the_published_number_of_parameters_layer_by_layer():
    downs = [3_072, 131_072, 256, 524_288, 512, 2_097_152, 1_024]  # 4*4*in*out, then 2 per channel of BatchNorm
    downs += [4_194_304, 1_024] * 3 + [4_194_304]
    ups = [6_147, 262_144, 128, 1_048_576, 256, 4_194_304, 512]  # from the picture inwards; skips double the input
    ups += [8_388_608, 1_024] * 3 + [4_194_304, 1_024]
    assert _counts(UNetGenerator(**SMALL | {"norm": "batch"})) == downs + ups
    assert sum(downs + ups) == 54_413_955  # 54.414 M in pix2pix' own listing of unet_256


def test_unet_with_instancenorm_has_a_bias_in_every_convolution():
    biases = [64, 128, 256, 512, 512, 512, 512, 512, 3, 64, 128, 256, 512, 512, 512, 512]
    found = [m.bias.numel() for m in UNetGenerator(**SMALL).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert found == biases


def _norm(x):
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt()


def _reference_resnet(x, weights, blocks):
    """arXiv:1711.07064, figure 3, by functions; `weights` is an iterator over (weight, bias)."""
    mirrored = lambda y, by: F.pad(y, (by,) * 4, mode="reflect")  # noqa: E731
    y = _norm(F.conv2d(mirrored(x, 3), *next(weights))).relu()
    for _ in range(2):
        y = _norm(F.conv2d(y, *next(weights), stride=2, padding=1)).relu()
    for _ in range(blocks):
        change = _norm(F.conv2d(mirrored(y, 1), *next(weights))).relu()
        y = y + _norm(F.conv2d(mirrored(change, 1), *next(weights)))
    for _ in range(2):
        y = F.conv_transpose2d(y, *next(weights), stride=2, padding=1, output_padding=1)
        y = _norm(y).relu()
    return torch.tanh(F.conv2d(mirrored(y, 3), *next(weights)))


def _reference_unet(x, downs, ups, outermost=True):
    """One level of pix2pix' U-Net and all inside it; returns what the level above joins to its skip."""
    (down, *inner_downs), (up, *inner_ups) = downs, ups
    y = F.conv2d(x if outermost else F.leaky_relu(x, 0.2), *down, stride=2, padding=1)
    if inner_downs:
        y = y if outermost else _norm(y)
        y = torch.cat([_reference_unet(y, inner_downs, inner_ups, outermost=False), y], dim=1)
    y = F.conv_transpose2d(y.relu(), *up, stride=2, padding=1)
    return torch.tanh(y) if outermost else _norm(y)


def _weights(network):
    return [(m.weight, m.bias) for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def test_resnet_computes_the_papers_figure():
    network, pictures = _enlarge(_resnet(blocks=2)).double(), _pictures(2, 3, 16, 24).double()
    expected = (_reference_resnet(pictures, iter(_weights(network)), 2) + pictures).clamp(-1, 1)
    torch.testing.assert_close(network(pictures), expected, rtol=1e-9, atol=1e-9)


def test_unet_computes_pix2pix_figure():
    network, pictures = _enlarge(_unet(depth=4)).double(), _pictures(2, 3, 32, 48).double()
    weights = _weights(network)
    expected = (_reference_unet(pictures, weights[:4], weights[4:]) + pictures).clamp(-1, 1)
    torch.testing.assert_close(network(pictures), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@BOTH
@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_the_output_has_the_size_of_the_input(make, upsampling, height, width):
    with torch.no_grad():
        restored = make(filters=1, upsampling=upsampling)(_pictures(1, 3, height, width))
    assert restored.shape == (1, 3, height, width)
    assert restored.isfinite().all()
    assert restored.abs().max() <= 1


@pytest.mark.parametrize(
    ("make", "size", "padded"),
    [
        (_resnet, (8, 12), (8, 12)),
        (_resnet, (9, 31), (12, 32)),
        (_resnet, (1, 4), (8, 8)),
        (_unet, (8, 16), (8, 16)),
        (_unet, (9, 1), (16, 8)),
    ],
)
def test_padding_is_minimal_and_replicates_the_last_row_and_column(make, size, padded):
    network, pictures, seen = make(), _pictures(2, 3, *size), []
    _first_convolution(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    network(pictures)
    extra = [(0, 0), (0, 0), *((0, p - s) for p, s in zip(padded, size, strict=True))]
    np.testing.assert_array_equal(seen[0], np.pad(pictures.numpy(), extra, mode="edge"))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("side", [20, 256])
def test_unet_of_full_depth_trains_on_one_picture(norm, side):
    network = _unet(filters=2, depth=8, norm=norm, dropout=0.5)
    network(_pictures(1, 3, side, side)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@BOTH
def test_clamp_and_mean_follow_their_formulas(make):
    pictures, changes = _pictures(2, 3, 16, 16), []
    for output in ("clamp", "mean"):
        network = _enlarge(make(output=output))
        tanh = next(m for m in network.modules() if isinstance(m, nn.Tanh))
        tanh.register_forward_hook(lambda _, __, change: changes.append(change.detach().numpy()))
        restored = network(pictures).detach().numpy()
        change = changes.pop()
        assert np.abs(change + pictures.numpy()).max() > 1  # otherwise clamping would have no effect
        formula = {"clamp": np.clip(change + pictures.numpy(), -1, 1), "mean": (change + pictures.numpy()) / 2}
        np.testing.assert_allclose(restored, formula[output], atol=1e-6)


@BOTH
def test_a_zero_residual_returns_the_picture(make):
    network, pictures = make(), _pictures(2, 3, 13, 22)
    for parameter in _last_convolution(network).parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(network(pictures), pictures)


def _roughness_of_flat_picture(upsampling):
    network = _enlarge(_resnet(filters=4, norm="batch", upsampling=upsampling, output="mean")).eval()
    with torch.no_grad():
        middle = network(torch.full((1, 3, 96, 96), 0.1))[..., 40:56, 40:56]  # the border of zeros does not reach it
    return middle.std(dim=(2, 3)).max().item()


def test_resizing_leaves_a_flat_picture_flat_where_transposed_convolution_shows_a_checkerboard():
    assert _roughness_of_flat_picture("resize") < 1e-6
    assert _roughness_of_flat_picture("transposed") > 1e-3


@BOTH
def test_dropout_is_active_in_training_only(make):
    deep = {"depth": 6} if make is _unet else {}
    network, pictures = _enlarge(make(dropout=0.5, **deep)), _pictures(1, 3, 64, 64)
    assert not torch.equal(network(pictures), network(pictures))
    network.eval()
    assert torch.equal(network(pictures), network(pictures))


def _dropouts(network):
    return [m.p for m in network.modules() if isinstance(m, nn.Dropout)]


def test_dropout_sits_once_in_each_residual_block_and_in_the_three_deep_doublings_of_the_unet():
    assert _dropouts(_resnet(blocks=4, dropout=0.3)) == [0.3] * 4
    assert _dropouts(_unet(depth=8, dropout=0.5)) == [0.5] * 3
    assert _dropouts(_resnet(dropout=0.0)) == _dropouts(_unet(depth=8, dropout=0.0)) == []


@BOTH
def test_instancenorm_has_no_running_statistics(make):
    network = make()
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_initial_weights_are_deblurgans_and_from_torchs_global_generator():
    torch.manual_seed(3)
    network = ResNetGenerator(**SMALL | {"norm": "batch", "filters": 32})
    np.random.seed(0)
    torch.manual_seed(3)
    again = ResNetGenerator(**SMALL | {"norm": "batch", "filters": 32})
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    kernels = torch.cat([p.flatten() for p in network.parameters() if p.dim() == 4])
    assert kernels.std().item() == pytest.approx(0.02, rel=0.01)
    scales = torch.cat([m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1, abs=0.005)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))
