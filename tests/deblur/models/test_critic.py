"""Critics against published parameter counts and a functional reimplementation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cluster.errors import InputError
from deblur.models.critic import DenseCritic, PatchCritic


def _pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _counts(network):
    return [n for m in network.modules() if (n := sum(p.numel() for p in m.parameters(recurse=False)))]


def _enlarge(network):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return network.double()


def _weights(network):
    return iter([(m.weight, m.bias) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)])


def _norm(x):
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt()


def test_patch_critic_has_the_published_number_of_parameters_layer_by_layer():
    by_hand = [3_136, 131_200, 524_544, 2_097_664, 8_193]  # 4*4*in*out + out
    assert _counts(PatchCritic(norm="instance")) == by_hand
    assert sum(by_hand) == 2_764_737


def test_patch_critic_with_more_layers_stops_widening_at_eight_times_its_filters():
    widths = [m.out_channels for m in PatchCritic(filters=2, layers=5, norm="none").modules() if hasattr(m, "stride")]
    assert widths == [2, 4, 8, 16, 16, 16, 1]


def test_patch_critic_computes_pix2pix_figure():
    network, pictures = _enlarge(PatchCritic(filters=2, norm="instance")), _pictures(2, 3, 40, 56).double()
    weights = _weights(network)
    y = F.leaky_relu(F.conv2d(pictures, *next(weights), stride=2, padding=1), 0.2)
    for stride in (2, 2, 1):
        y = F.leaky_relu(_norm(F.conv2d(y, *next(weights), stride=stride, padding=1)), 0.2)
    expected = F.conv2d(y, *next(weights), padding=1)
    torch.testing.assert_close(network(pictures), expected, rtol=1e-9, atol=1e-9)
    assert expected.shape == (2, 1, 3, 5)


def test_a_patch_is_70_pixels_wide_and_high():
    torch.manual_seed(0)
    critic, pictures = PatchCritic(filters=8, norm="none").double(), _pictures(1, 3, 256, 256).double()
    scores = critic(pictures.requires_grad_())
    assert scores.shape == (1, 1, 30, 30)
    scores[0, 0, 14, 15].backward()
    rows, columns = (pictures.grad.abs().sum(dim=(0, 1, other)).nonzero().flatten() for other in (3, 2))
    assert rows.max() - rows.min() + 1 == len(rows) == 70
    assert columns.max() - columns.min() + 1 == len(columns) == 70
    assert columns.min() - rows.min() == 8  # one score to the right is one stride


def test_patch_scores_of_a_picture_do_not_depend_on_its_neighbours_under_instancenorm():
    critic, pictures = _enlarge(PatchCritic(filters=4, norm="instance")), _pictures(3, 3, 32, 32).double()
    alone = torch.cat([critic(p[None]) for p in pictures])
    torch.testing.assert_close(critic(pictures), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_gives_one_score_and_a_smaller_one_is_refused(layers):
    critic, side = PatchCritic(filters=1, layers=layers, norm="instance"), {1: 6, 2: 12, 3: 24}[layers]
    assert critic(_pictures(1, 3, side, side + 1)).shape[:3] == (1, 1, 1)
    with pytest.raises(InputError, match=rf"{side}x{side - 1} .*{side}x{side}: raise --crop"):
        critic(_pictures(1, 3, side, side - 1))


def test_dense_critic_has_the_articles_parameters_layer_by_layer():
    convolutions = [3_136, 65_600, 131_200, 524_544, 2_097_664, 8_193]
    dense = [256 * 1024 + 1024, 1_025]
    assert _counts(DenseCritic(norm="none", crop=256)) == convolutions + dense
    norms = [128, 256, 512, 1_024]  # two per channel, after the second to the fifth convolution
    with_norm = [3_136, 65_600, 128, 131_200, 256, 524_544, 512, 2_097_664, 1_024, 8_193]
    assert _counts(DenseCritic(crop=256)) == with_norm + dense
    assert sum(norms) == 2 * (64 + 128 + 256 + 512)


def _same(x, weight, bias, stride):
    """Keras' padding 'same': ceil(n / stride) outputs, odd padding at the end."""
    size, kernel = x.shape[-1], weight.shape[-1]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, stride)


def test_dense_critic_computes_the_articles_layers():
    network, pictures = _enlarge(DenseCritic(filters=2, norm="instance", crop=48)), _pictures(2, 3, 48, 48).double()
    weights = _weights(network)
    y = F.leaky_relu(_same(pictures, *next(weights), stride=2), 0.2)
    for stride in (2, 2, 2, 1):
        y = F.leaky_relu(_norm(_same(y, *next(weights), stride=stride)), 0.2)
    y = _same(y, *next(weights), stride=1).flatten(1)
    y = torch.tanh(F.linear(y, *next(weights)))
    expected = torch.sigmoid(F.linear(y, *next(weights)))
    torch.testing.assert_close(network(pictures), expected, rtol=1e-9, atol=1e-9)
    assert expected.shape == (2, 1)


@pytest.mark.parametrize("crop", [32, 33, 100])
def test_dense_critic_refuses_another_crop_size_with_the_fix(crop):
    critic = DenseCritic(filters=1, norm="instance", crop=crop)
    assert critic(_pictures(2, 3, crop, crop)).shape == (2, 1)
    with pytest.raises(InputError, match=rf"built for {crop}x{crop} pixels and got {crop}x64: set --crop"):
        critic(_pictures(2, 3, crop, 64))


def test_dense_critic_refuses_crops_that_are_too_small():
    with pytest.raises(InputError, match=r"data.crop is 31; .* 32"):
        DenseCritic(crop=31)
