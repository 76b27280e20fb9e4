"""Losses against numpy formulas, finite differences, and what one step of descent does to the scores."""

from typing import get_args

import numpy as np
import pytest
import torch

from deblur.config.recipes import Objective
from deblur.models.critic import PatchCritic
from deblur.models.generator import ResNetGenerator
from deblur.training.losses import (
    content_distance,
    critic_terms,
    frequency_distance,
    generator_term,
    gradient_penalty,
    pixel_distance,
)

OBJECTIVES = ("wasserstein", "wgan-gp", "least-squares", "relativistic-least-squares", "vanilla")


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pictures(seed, batch=3, side=32):
    return _random(batch, 3, side, side, seed=seed).tanh()


def _critic(**changes):
    torch.manual_seed(4)
    critic = PatchCritic(**{"filters": 4, "layers": 2, "norm": "instance", **changes}).double()
    with torch.no_grad():
        for parameter in critic.parameters():  # first weights of 0.02 make scores of almost nothing
            parameter.mul_(5)
    return critic


def _log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def _relativistic(high, low):
    """DeblurGAN-v2's (arXiv:1908.03826) on each image: `high` should be 1 above the mean of `low`, `low` 1 below."""
    pairs = zip(high, low, strict=True)
    return [((h - lows.mean() - 1) ** 2).mean() + ((lows - h.mean() + 1) ** 2).mean() for h, lows in pairs]


def _critic_by_numpy(objective, sharp, restored):
    if objective == "relativistic-least-squares":
        return _relativistic(sharp, restored)
    if objective == "least-squares":
        loss = ((sharp - 1) ** 2 + restored**2) / 2
    elif objective == "vanilla":
        loss = -_log_sigmoid(sharp) - np.log(1 - 1 / (1 + np.exp(-restored)))
    else:
        labels = {"sharp": -1, "restored": 1}  # of the article
        loss = labels["sharp"] * sharp + labels["restored"] * restored
    return loss.reshape(len(loss), -1).mean(1)


def _generator_by_numpy(objective, sharp, restored):
    if objective == "relativistic-least-squares":
        return _relativistic(restored, sharp)
    formulas = {"least-squares": (restored - 1) ** 2 / 2, "vanilla": -_log_sigmoid(restored)}
    loss = formulas.get(objective, -restored)
    return loss.reshape(len(loss), -1).mean(1)


@pytest.mark.parametrize("shape", [(4, 1, 5, 6), (4, 1)], ids=["patches", "one score"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_follow_their_formulas_image_by_image(objective, shape):
    sharp, restored = 3 * _random(*shape, seed=1), 3 * _random(*shape, seed=2)
    expected = _critic_by_numpy(objective, sharp.numpy(), restored.numpy())
    np.testing.assert_allclose(critic_terms(objective, sharp, restored).numpy(), expected, rtol=1e-10)
    expected = _generator_by_numpy(objective, sharp.numpy(), restored.numpy())
    np.testing.assert_allclose(generator_term(objective, sharp, restored).numpy(), expected, rtol=1e-10)


def test_there_are_no_other_objectives():
    assert get_args(Objective) == OBJECTIVES


def test_vanilla_stays_finite_for_scores_far_from_zero():
    scores = torch.tensor([[-1e4], [1e4]])
    assert critic_terms("vanilla", scores, scores).tolist() == [1e4, 1e4]
    assert generator_term("vanilla", scores, scores).tolist() == [1e4, 0]


def test_content_distance_is_the_mean_squared_difference_of_each_image():
    restored, sharp = _random(3, 4, 5, 6, seed=1), _random(3, 4, 5, 6, seed=2)
    expected = [np.mean((restored[i].numpy() - sharp[i].numpy()) ** 2) for i in range(3)]
    np.testing.assert_allclose(content_distance(restored, sharp).numpy(), expected, rtol=1e-12)


def test_pixel_and_frequency_distances_are_those_of_numpy_image_by_image():
    restored, sharp = _pictures(1), _pictures(2)
    error = (restored - sharp).numpy()
    np.testing.assert_allclose(pixel_distance(restored, sharp, "l1"), np.abs(error).mean((1, 2, 3)), rtol=1e-12)
    charbonnier = np.sqrt(error**2 + 1e-3**2).mean((1, 2, 3))
    np.testing.assert_allclose(pixel_distance(restored, sharp, "charbonnier"), charbonnier, rtol=1e-12)
    difference = np.fft.fft2(restored.numpy()) - np.fft.fft2(sharp.numpy())
    expected = (np.abs(difference.real).mean((1, 2, 3)) + np.abs(difference.imag).mean((1, 2, 3))) / 2
    np.testing.assert_allclose(frequency_distance(restored, sharp), expected, rtol=1e-10)


def _descend(network, loss, rate):
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= rate * parameter.grad


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_of_the_critic_raises_sharp_scores_over_restored_ones(objective):
    critic, sharp, restored = _critic(norm="none"), _pictures(1), _pictures(2)

    def margin():
        return (critic(sharp).mean() - critic(restored).mean()).item()

    before = margin()
    _descend(critic, critic_terms(objective, critic(sharp), critic(restored)).mean(), rate=1e-4)
    assert margin() > before


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_of_the_generator_raises_the_restored_score(objective):
    torch.manual_seed(0)
    generator = ResNetGenerator(
        filters=2, blocks=1, norm="instance", dropout=0.0, upsampling="resize", output="clamp"
    ).double()
    critic, blurred = _critic(norm="none"), _pictures(1)
    before = critic(generator(blurred)).mean().item()
    assert before < 1  # the target of least-squares
    sharp_scores = critic(_pictures(2)).detach()
    _descend(generator, generator_term(objective, sharp_scores, critic(generator(blurred))).mean(), rate=1e-3)
    assert critic(generator(blurred)).mean().item() > before


@pytest.mark.parametrize("length", [0.25, 1.0, 7.0])
def test_penalty_of_a_linear_critic_is_the_squared_distance_of_its_length_from_one(length):
    weight = _random(3, 8, 9)
    weight *= length / weight.norm()
    sharp, restored = _random(4, 3, 8, 9, seed=1), _random(4, 3, 8, 9, seed=2)
    penalty = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), sharp, restored, torch.rand(4, 1, 1, 1).double())
    np.testing.assert_allclose(penalty.numpy(), (length - 1) ** 2, atol=1e-6)


def test_penalty_is_of_the_mean_over_patches():
    weight = _random(3, 8, 8)

    def four_patches(x):  # each sees the whole picture, so their mean has the gradient `weight`
        return (x * weight).sum((1, 2, 3))[:, None, None, None].expand(-1, 1, 2, 2)

    mix = torch.full((2, 1, 1, 1), 0.5).double()
    penalty = gradient_penalty(four_patches, _random(2, 3, 8, 8, seed=1), _random(2, 3, 8, 8, seed=2), mix)
    np.testing.assert_allclose(penalty.numpy(), (weight.norm().item() - 1) ** 2, rtol=1e-12)


def test_penalty_looks_between_the_pictures_where_each_images_own_mix_says():
    sharp, restored = _random(3, 3, 4, 4, seed=1), _random(3, 3, 4, 4, seed=2)
    mix = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    penalty = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, sharp, restored, mix)  # its gradient is x
    places = [restored[0], 0.3 * sharp[1] + 0.7 * restored[1], sharp[2]]
    expected = [(np.linalg.norm(place.numpy()) - 1) ** 2 for place in places]
    np.testing.assert_allclose(penalty.detach().numpy(), expected, rtol=1e-12)


def test_penalty_of_a_batch_is_that_of_each_image_alone():
    critic, sharp, restored = _critic(), _pictures(1), _pictures(2)
    mix = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64).view(3, 1, 1, 1)
    together = gradient_penalty(critic, sharp, restored, mix)
    alone = [gradient_penalty(critic, *(t[i : i + 1] for t in (sharp, restored, mix))) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-12)
    assert together.std() > 1e-6  # three different numbers


def test_penaltys_gradient_in_the_critics_weights_equals_finite_differences():
    critic, sharp, restored = _critic(), _pictures(1, batch=2), _pictures(2, batch=2)
    mix = torch.tensor([0.2, 0.7], dtype=torch.float64).view(2, 1, 1, 1)

    def penalty():
        return gradient_penalty(critic, sharp, restored, mix).mean()

    # Biases that InstanceNorm takes out again, and the last one, have no part in the gradient's norm.
    gradients = torch.autograd.grad(penalty(), list(critic.parameters()), materialize_grads=True)
    for number, (parameter, gradient) in enumerate(zip(critic.parameters(), gradients, strict=True)):
        direction, step = _random(*parameter.shape, seed=number), 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            ends.append(penalty().item())
            with torch.no_grad():
                parameter -= sign * step * direction
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-4, abs=1e-7)
    assert gradients[0].abs().max() > 1e-3


def test_penalty_sends_no_gradient_to_the_pictures():
    critic, sharp, restored = _critic(), _pictures(1).requires_grad_(), _pictures(2).requires_grad_()
    gradient_penalty(critic, sharp, restored, torch.full((3, 1, 1, 1), 0.5).double()).sum().backward()
    assert sharp.grad is None
    assert restored.grad is None
    assert next(critic.parameters()).grad.abs().sum() > 0


def test_penalty_of_a_critic_that_sees_nothing_is_one_with_a_finite_gradient():
    critic = _critic()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
    penalty = gradient_penalty(critic, _pictures(1), _pictures(2), torch.full((3, 1, 1, 1), 0.5).double())
    assert penalty.tolist() == [1, 1, 1]
    penalty.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())
