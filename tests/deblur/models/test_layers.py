"""Custom layers against torch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deblur.models.convolution import PenalisedConv2d
from deblur.models.layers import Dropout, ReflectionPad2d

SHAPES = st.tuples(*(st.integers(*ends) for ends in [(1, 3), (1, 3), (1, 3), (5, 9), (5, 9), (1, 4), (1, 3), (0, 2)]))


def pair(before: int, after: int, kernel: int, stride: int, padding: int) -> tuple[PenalisedConv2d, nn.Conv2d]:
    """The custom convolution and torch's with the same weights."""
    torch.manual_seed(before + 7 * after)
    ours = PenalisedConv2d(before, after, kernel, stride, padding).double()
    theirs = nn.Conv2d(before, after, kernel, stride, padding).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def slopes(layer: nn.Module, pictures: Tensor) -> list[Tensor]:
    """The output, and the weights' gradient of a sum of the output and a penalty on the slope in the pictures."""
    pictures = pictures.clone().requires_grad_()
    output = layer(pictures)
    (slope,) = torch.autograd.grad(output.tanh().sum(), pictures, create_graph=True)
    (output.square().sum() + (slope.norm() - 1) ** 2).backward()
    return [output.detach(), slope.detach(), pictures.grad, layer.weight.grad, layer.bias.grad]


@given(SHAPES)
@settings(deadline=None, max_examples=60)
def test_the_convolution_and_both_its_derivatives_are_torchs(shape: tuple[int, ...]) -> None:
    images, before, after, height, width, kernel, stride, padding = shape
    ours, theirs = pair(before, after, kernel, stride, padding)
    pictures = torch.randn(images, before, height, width, generator=torch.Generator().manual_seed(1)).double()
    for found, expected in zip(slopes(ours, pictures), slopes(theirs, pictures), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_weights_have_no_second_derivative_and_that_is_an_error() -> None:
    ours, _ = pair(2, 3, 3, 1, 1)
    score = ours(torch.randn(1, 2, 5, 5).double()).square().sum()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(score, ours.weight, create_graph=True)


def test_under_autocast_the_convolution_is_torchs_in_its_dtype() -> None:
    ours, theirs = (layer.float() for layer in pair(3, 4, 4, 2, 1))
    pictures = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ours(pictures), theirs(pictures)
    assert found.dtype is expected.dtype is torch.bfloat16
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert ours.weight.grad.dtype is torch.float32


def test_dropout_drops_its_fraction_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, ones = Dropout(0.3), torch.ones(100_000)
    dropped = layer(ones)
    assert set(dropped.tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.01)  # seven standard deviations
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(layer(ones), dropped)
    assert torch.equal(layer.eval()(ones), ones)


def test_dropouts_gradient_has_the_mask_of_the_output() -> None:
    torch.manual_seed(0)
    values = torch.randn(1000, dtype=torch.bfloat16).requires_grad_()
    output = Dropout(0.5)(values)
    output.sum().backward()
    assert output.dtype is torch.bfloat16
    assert torch.equal(values.grad != 0, output != 0)
    assert torch.equal(values.grad[output != 0], torch.full_like(values.grad[output != 0], 2))


def test_reflection_padding_keeps_the_dtype_under_autocast() -> None:
    pictures = torch.randn(1, 2, 4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        padded = ReflectionPad2d(3)(pictures)
    assert padded.dtype is torch.bfloat16
    assert torch.equal(padded, F.pad(pictures, (3, 3, 3, 3), mode="reflect"))
