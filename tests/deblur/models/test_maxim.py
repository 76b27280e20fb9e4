"""MAXIM's blocks against the paper's equations in numpy, with small seeded weights."""

import numpy as np
import pytest
import torch
from torch import nn

from deblur.config.recipes import GeneratorRecipe, Recipe
from deblur.models.build import build_generator
from deblur.models.maxim import ConvTranspose2d, CrossGating, GatedMlp, Maxim, MultiAxisMlp, MultiScale, SpatialLinear


def enlarged(network: nn.Module) -> nn.Module:
    """Every parameter is drawn, also those that start at 0 or 1; double precision."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return network.double()


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def arrays(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


class Equations:
    """Section 3.2 and 3.3 of the paper in numpy; `w` has the weights, and names are paths in it."""

    def __init__(self, network: nn.Module) -> None:
        self.w = arrays(network)

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(variance + 1e-6) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def gelu(self, x: np.ndarray) -> np.ndarray:
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def spatial(self, x: np.ndarray, name: str, side: int, over: str) -> np.ndarray:
        """Picks the pixels of each block, or of each place in the grid's cells, one set at a time."""
        height, width, mixed = *x.shape[1:3], np.empty_like(x)
        for a, b in np.ndindex(height // side, width // side):
            rows = a * side + np.arange(side) if over == "block" else a + height // side * np.arange(side)
            columns = b * side + np.arange(side) if over == "block" else b + width // side * np.arange(side)
            chosen = (slice(None), *np.ix_(rows, columns))
            flat = x[chosen].reshape(len(x), side**2, -1)
            weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
            mixed[chosen] = (np.einsum("ij,bjc->bic", weight, flat) + bias[:, None]).reshape(x[chosen].shape)
        return mixed

    def gated_mlp(self, x: np.ndarray, at: str, side: int, over: str) -> np.ndarray:
        u, v = np.split(self.gelu(self.dense(self.norm(x, f"{at}norm"), f"{at}expand")), 2, axis=-1)
        gate = self.spatial(self.norm(v, f"{at}gate_norm"), f"{at}mix", side, over)
        return x + self.dense(u * (gate + 1), f"{at}project")

    def multi_axis(self, x: np.ndarray, side: int) -> np.ndarray:
        u, v = np.split(self.gelu(self.dense(self.norm(x, "norm"), "expand")), 2, axis=-1)
        both = self.gated_mlp(u, "grid.", side, "grid"), self.gated_mlp(v, "block.", side, "block")
        return x + self.dense(np.concatenate(both, axis=-1), "project")

    def spatial_gate(self, x: np.ndarray, at: str, side: int) -> np.ndarray:
        u, v = np.split(self.gelu(self.dense(self.norm(x, f"{at}norm"), f"{at}expand")), 2, axis=-1)
        both = self.spatial(u, f"{at}grid", side, "grid"), self.spatial(v, f"{at}block", side, "block")
        return self.dense(np.concatenate(both, axis=-1), f"{at}project")

    def cross_gating(self, x: np.ndarray, y: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.dense(x, "x.first"), self.dense(y, "y.first")
        x1 = self.gelu(self.dense(self.norm(x, "x.norm"), "x.expand"))
        y1 = self.gelu(self.dense(self.norm(y, "y.norm"), "y.expand"))
        gate_x, gate_y = self.spatial_gate(x1, "x.gate.", side), self.spatial_gate(y1, "y.gate.", side)
        y2 = y + self.dense(y1 * gate_x, "y.project")
        return x + y2 + self.dense(x1 * gate_y, "x.project"), y2


@pytest.mark.parametrize("over", ["grid", "block"])
def test_a_spatial_layer_mixes_the_pixels_of_a_block_or_of_the_grid(over) -> None:
    layer, x = enlarged(SpatialLinear(2, over)), features(2, 6, 8, 3)
    expected = Equations(nn.ModuleDict({"mix": layer})).spatial(x.numpy(), "mix", 2, over)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("over", ["grid", "block"])
def test_the_gated_mlp_computes_the_papers_equation(over) -> None:
    network, x = enlarged(GatedMlp(4, 4, over)), features(2, 8, 12, 4)
    expected = Equations(network).gated_mlp(x.numpy(), "", 4, over)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_multi_axis_mlp_computes_the_papers_equation() -> None:
    network, x = enlarged(MultiAxisMlp(4, 4)), features(2, 8, 12, 4)
    expected = Equations(network).multi_axis(x.numpy(), 4)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_cross_gating_computes_the_papers_equations() -> None:
    network, x, y = enlarged(CrossGating(6, 2, 4, side=4)), features(2, 8, 12, 6), features(2, 8, 12, 2)
    expected = Equations(network).cross_gating(x.numpy(), y.numpy(), 4)
    for found, wanted in zip(network(x, y), expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-9, atol=1e-12)


def resize_matrix(old: int, new: int) -> np.ndarray:
    """jax.image.resize "bilinear" along an axis: a triangle, wider where the axis shrinks; its weights sum to 1."""
    centres, width = (np.arange(new) + 0.5) * old / new - 0.5, max(1, old / new)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)) / width)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_features_of_all_levels_are_resized_as_by_jax(level) -> None:
    network = MultiScale([2, 3, 4], level)
    levels = [
        torch.rand(1, 16 // 2**i, 24 // 2**i, 2 + i, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    for project, x, found in zip(network.projections, levels, network(levels), strict=True):
        rows, columns = resize_matrix(x.shape[1], 16 // 2**level), resize_matrix(x.shape[2], 24 // 2**level)
        expected = np.einsum("yh,xw,bhwc->byxc", rows, columns, x.numpy()) @ project.weight.detach().numpy().T
        expected += project.bias.detach().numpy()
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_the_network_has_the_parameters_of_the_published_one() -> None:
    network = build_generator(Recipe(generator=GeneratorRecipe(architecture="maxim")))
    assert sum(parameter.numel() for parameter in network.parameters()) == 22_207_605  # 22.2 M in the paper's table


def small() -> Maxim:
    torch.manual_seed(0)
    return Maxim(filters=4, stages=2).eval()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 130), (65, 3), (33, 64), (63, 97)])
@torch.no_grad()
def test_the_output_has_the_size_of_the_input(height, width) -> None:
    restored = small()(torch.rand(1, 3, height, width) * 2 - 1)
    assert restored.shape == (1, 3, height, width)
    assert restored.isfinite().all()


@pytest.mark.parametrize(("height", "width", "modes"), [(40, 100, "reflect"), (64, 128, "reflect"), (5, 20, "edge")])
def test_the_picture_is_padded_on_both_sides_and_shown_in_three_scales(height, width, modes) -> None:
    network, seen = small(), []
    for convolution in network.stages[0].inputs:
        convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].numpy()))
    picture = torch.rand(1, 3, height, width) * 2 - 1
    with torch.no_grad():
        network(picture)
    ends = [(-side % 64 // 2, -side % 64 - -side % 64 // 2) for side in (height, width)]
    padded = np.pad((picture[0].permute(1, 2, 0).numpy() + 1) / 2, [*ends, (0, 0)], mode=modes)
    for scale, (start, step) in enumerate([(0, 1), (1, 2), (2, 4)]):  # the pixels of jax.image.resize "nearest"
        np.testing.assert_allclose(seen[scale], padded[start::step, start::step], atol=1e-6)


def test_a_last_convolution_of_zeros_returns_the_picture() -> None:
    network, picture = small(), torch.rand(1, 3, 70, 50) * 2 - 1
    for parameter in network.stages[-1].last.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(network(picture), picture)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_parameter_is_trained_also_with_autocast(dtype) -> None:
    network = small().train()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        restored = network(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert restored.dtype == torch.float32
    restored.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    # With 4 channels, channel attention has one hidden unit, which may be off.
    assert [name for name, gradient in gradients.items() if not gradient.any() and "attention" not in name] == []


def test_initial_weights_are_the_originals() -> None:
    network = small()
    gate, mlp = network.stages[0].gates[0].x.gate, network.stages[0].encoders[0].groups[0]
    assert gate.grid.bias.eq(1).all()
    assert gate.block.bias.eq(1).all()
    assert mlp.grid.mix.bias.eq(0).all()
    assert mlp.grid.mix.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for module, inputs in ((network.stages[0].inputs[2], 27), (network.stages[0].gates[2].x.first, 48)):
        assert module.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.15)
    ups = next(module for module in network.modules() if isinstance(module, ConvTranspose2d))
    assert ups.bias.eq(0).all()
