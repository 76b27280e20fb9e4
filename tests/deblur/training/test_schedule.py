"""Schedules against the sentences that describe them."""

import math
from dataclasses import replace

import pytest

from deblur.config.presets import paper
from deblur.config.recipes import AdamRecipe, DataRecipe
from deblur.training.schedule import ema_decay, lr_factor, settings_at


@pytest.mark.parametrize(
    ("images_seen", "expected"),
    [(0, 1), (499, 1), (500, 1), (750, 0.5), (900, 0.2), (1000, 0), (1100, 0)],
)
def test_linear_is_constant_for_half_the_run_then_falls_to_zero(images_seen: int, expected: float) -> None:
    assert lr_factor(AdamRecipe(), images_seen, 1000) == pytest.approx(expected)


def test_a_decay_start_of_one_is_constant() -> None:
    assert {lr_factor(AdamRecipe(lr_decay_start=1.0), images, 1000) for images in range(0, 1001, 50)} == {1.0}


def test_cosine_falls_along_half_a_period_after_a_linear_rise() -> None:
    adam = AdamRecipe(lr_decay="cosine", lr_decay_start=0.0, warmup_images=100)
    for images in (100, 250, 500, 999, 1000):
        assert lr_factor(adam, images, 1000) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * images / 1000))
    assert lr_factor(adam, 0, 1000) == 0
    assert lr_factor(adam, 50, 1000) == pytest.approx(0.5 * (0.5 + 0.5 * math.cos(math.pi * 0.05)))


def test_what_was_averaged_counts_half_after_the_half_life_for_any_batch_size() -> None:
    for batch_size in (1, 8, 25):
        recipe = replace(paper(), adam=AdamRecipe(ema_halflife_images=200), data=DataRecipe(batch_size=batch_size))
        assert ema_decay(recipe, 100_000) ** (200 / batch_size) == pytest.approx(0.5)
        assert ema_decay(recipe, 1000) ** (50 / batch_size) == pytest.approx(0.5), "early, a twentieth of what was seen"
        assert ema_decay(recipe, 0) == 0
    assert ema_decay(paper(), 100_000) == 0


def test_both_learning_rates_follow_the_factor_and_the_critic_joins_when_told() -> None:
    recipe = replace(paper(), adam=AdamRecipe(generator_lr=2e-4, critic_lr=3e-4))
    recipe = replace(recipe, loss=replace(recipe.loss, adversarial_from=80, pixel_weight=1.0))
    found = [settings_at(recipe, images, 100) for images in (75, 80)]
    assert [(s.generator_lr, s.critic_lr) for s in found] == [
        (1e-4, 1.5e-4),
        (pytest.approx(8e-5), pytest.approx(1.2e-4)),
    ]
    assert [s.adversarial for s in found] == [False, True]
