"""What changes in the course of a run, as a function of images_seen, so that no batch size or node count moves it."""

import math
from dataclasses import dataclass

from deblur.config.recipes import AdamRecipe, Recipe

_EMA_RAMP_UP = 0.05  # the half-life is at most this fraction of the images seen, as in StyleGAN2-ADA (arXiv:2006.06676)


@dataclass(frozen=True)
class UpdateSettings:
    """The settings of one update."""

    generator_lr: float
    critic_lr: float
    adversarial: bool = True
    """Whether critic and content loss take part."""
    ema_decay: float = 0.0
    """Factor of the moving average before this update's weights are added."""


def settings_at(recipe: Recipe, images_seen: int, total_images: int) -> UpdateSettings:
    """Those of the update that starts at images_seen."""
    factor = lr_factor(recipe.adam, images_seen, total_images)
    return UpdateSettings(
        generator_lr=recipe.adam.generator_lr * factor,
        critic_lr=recipe.adam.critic_lr * factor,
        adversarial=images_seen >= recipe.loss.adversarial_from,
        ema_decay=ema_decay(recipe, images_seen),
    )


def uses_critic(recipe: Recipe) -> bool:
    """Whether a run has a critic at all."""
    return recipe.loss.adversarial_weight > 0


def lr_factor(adam: AdamRecipe, images_seen: int, total_images: int) -> float:
    """Rises linearly, is 1 until the fraction `lr_decay_start` of the run, then falls to 0 at its end.

    Linearly as in arXiv:1711.07064, section 5, or along half a cosine (arXiv:1608.03983, eq. 5).
    """
    rise = min(1.0, images_seen / adam.warmup_images) if adam.warmup_images else 1.0
    start = adam.lr_decay_start * total_images
    if images_seen <= start:
        return rise
    left = max(0.0, (total_images - images_seen) / (total_images - start))
    return rise * (left if adam.lr_decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


def ema_decay(recipe: Recipe, images_seen: int) -> float:
    """0.5 ** (batch / half-life): after as many images as the half-life, what was there counts half."""
    halflife = min(recipe.adam.ema_halflife_images, images_seen * _EMA_RAMP_UP)
    return 0.5 ** (recipe.data.batch_size / halflife) if halflife else 0.0
