"""NAFNet against its published sizes and a reading of the paper in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deblur.config.recipes import DataRecipe, GeneratorRecipe, Recipe
from deblur.models.build import build_generator
from deblur.models.nafnet import LayerNorm2d, LocalMean, NAFBlock, NAFNet
from tests.deblur.models import nafnet_reference as reference

BLOCKS = {"encoder_blocks": (1, 2), "middle_blocks": 1, "decoder_blocks": (2, 1)}


def network(filters: int = 4, train_crop: int = 16) -> NAFNet:
    """A small one whose blocks are not the identity."""
    torch.manual_seed(0)
    small = NAFNet(filters=filters, **BLOCKS, train_crop=train_crop)
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return small


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(("filters", "count"), [(32, 17_111_907), (64, 67_888_835)])
def test_parameter_counts_are_the_published_ones(filters: int, count: int) -> None:
    with torch.device("meta"):
        generator = build_generator(Recipe(generator=GeneratorRecipe(architecture="nafnet", filters=filters)))
    assert sum(parameter.numel() for parameter in generator.parameters()) == count  # 17.11 M and 67.89 M


def test_names_and_shapes_are_the_originals() -> None:
    shapes = {name: list(tensor.shape) for name, tensor in network().state_dict().items()}
    block = {"conv1": (8, 4, 1), "conv2": (8, 1, 3), "conv3": (4, 4, 1), "sca.1": (4, 4, 1)}
    block |= {"conv4": (8, 4, 1), "conv5": (4, 4, 1)}
    expected = {f"{name}.weight": [out, width, side, side] for name, (out, width, side) in block.items()}
    expected |= {f"{name}.bias": [out] for name, (out, _, _) in block.items()}
    expected |= {f"{name}.{part}": [4] for name in ("norm1", "norm2") for part in ("weight", "bias")}
    expected |= {"beta": [1, 4, 1, 1], "gamma": [1, 4, 1, 1]}
    prefix = "encoders.0.0."
    assert {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)} == expected
    outside = {k: v for k, v in shapes.items() if k.split(".")[0] not in ("encoders", "decoders", "middle_blks")}
    assert outside == {
        **{"intro.weight": [4, 3, 3, 3], "intro.bias": [4], "ending.weight": [3, 4, 3, 3], "ending.bias": [3]},
        **{"downs.0.weight": [8, 4, 2, 2], "downs.0.bias": [8], "downs.1.weight": [16, 8, 2, 2], "downs.1.bias": [16]},
        **{"ups.0.0.weight": [32, 16, 1, 1], "ups.1.0.weight": [16, 8, 1, 1]},
    }
    blocks = {tuple(name.split(".")[:-1])[:3] for name in shapes if name.endswith(".beta")}
    levels = ["encoders.0.0", "encoders.1.0", "encoders.1.1", "middle_blks.0"]
    assert {".".join(b) for b in blocks} == {*levels, "decoders.0.0", "decoders.0.1", "decoders.1.0"}


@pytest.mark.parametrize("size", [(8, 12), (13, 18), (1, 1)])
def test_the_network_computes_the_papers_equations(size: tuple[int, int]) -> None:
    generator, blurred = network().double(), pictures(2, 3, *size)
    with torch.no_grad():
        found = generator(blurred).numpy()
    for picture, restored in zip(blurred.numpy(), found, strict=True):
        expected = reference.network((picture + 1) / 2, arrays(generator), levels=2)
        np.testing.assert_allclose(restored, 2 * expected - 1, rtol=1e-9, atol=1e-9)


def test_a_block_computes_the_papers_figure_and_starts_as_the_identity() -> None:
    torch.manual_seed(1)
    block, x = NAFBlock(6, window=99).double(), pictures(1, 6, 9, 7)
    assert torch.equal(block(x), x)
    for name in ("beta", "gamma", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
        torch.nn.init.normal_(block.get_parameter(name))
    expected = reference.block(x[0].numpy(), arrays(block))
    np.testing.assert_allclose(block(x)[0].detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_layer_norm_keeps_float32_precision_in_autocast() -> None:
    norm, x = LayerNorm2d(32), 100 + pictures(1, 32, 4, 4).float()  # in bfloat16, 100 + x has no digits left
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(x)
    expected = reference.layer_norm(x[0].double().numpy(), np.ones(32), np.zeros(32))
    np.testing.assert_allclose(found[0].detach().numpy(), expected, atol=1e-3)


def test_every_parameter_gets_a_gradient_in_bfloat16() -> None:
    generator = network()
    with torch.autocast("cpu", torch.bfloat16):
        restored = generator(pictures(2, 3, 16, 16).float())
    restored.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in generator.parameters())


@pytest.mark.parametrize("size", [(5, 30), (30, 5), (9, 21), (8, 8)])
@pytest.mark.parametrize("window", [1, 7, 8])
def test_the_local_mean_is_over_the_nearest_window_inside_the_picture(size: tuple[int, int], window: int) -> None:
    x = pictures(2, 3, *size)
    found = LocalMean(window).eval()(x).expand(x.shape).numpy()
    expected = np.empty(x.shape)
    for row, column in np.ndindex(*size):
        spans = []
        for position, length in zip((row, column), size, strict=True):
            side = min(window, length)
            start = min(max(position - (side - 1) // 2, 0), length - side)
            spans.append(slice(start, start + side))
        expected[..., row, column] = x.numpy()[..., spans[0], spans[1]].mean(axis=(2, 3))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_local_mean_is_exact_in_float32_on_long_pictures() -> None:
    x = pictures(1, 1, 20_000, 2) + 5
    found, exact = (LocalMean(384).eval()(y) for y in (x.float(), x))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_attention_is_local_only_in_eval_mode_beyond_one_and_a_half_crops() -> None:
    generator = network(train_crop=16).double()
    with torch.no_grad():
        for side, is_local in ((24, False), (28, True)):
            blurred = pictures(1, 3, side, side)
            difference = (generator.train()(blurred) - generator.eval()(blurred)).abs().max()
            assert (difference > 1e-6) == is_local


def test_the_recipes_crop_sets_the_window_of_each_level() -> None:
    small = GeneratorRecipe(architecture="nafnet", filters=1, encoder_blocks=(1, 1), decoder_blocks=(1, 0))
    generator = build_generator(Recipe(generator=small, data=DataRecipe(crop=128)))
    windows = [module.window for module in generator.modules() if isinstance(module, LocalMean)]
    assert windows == [192, 96, 48, 96]
