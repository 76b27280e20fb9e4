"""Builds the networks of a recipe."""

from torch import nn

from deblur.config.recipes import Recipe
from deblur.models.critic import DenseCritic, PatchCritic
from deblur.models.generator import ResNetGenerator, UNetGenerator


def build_generator(recipe: Recipe) -> nn.Module:
    """The generator of a recipe, with initial weights from torch's global random state."""
    g = recipe.generator
    if g.architecture == "unet":
        return UNetGenerator(
            filters=g.filters, norm=g.norm, dropout=g.dropout, upsampling=g.upsampling, output=g.output
        )
    return ResNetGenerator(
        filters=g.filters, blocks=g.blocks, norm=g.norm, dropout=g.dropout, upsampling=g.upsampling, output=g.output
    )


def build_critic(recipe: Recipe) -> nn.Module:
    """The critic of a recipe, with initial weights from torch's global random state."""
    c = recipe.critic
    if c.architecture == "dense":
        return DenseCritic(filters=c.filters, norm=c.norm, crop=recipe.data.crop)
    return PatchCritic(filters=c.filters, layers=c.layers, norm=c.norm)
