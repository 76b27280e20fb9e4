"""From a recipe to its networks."""

from torch import nn

from deblur.config.recipes import Recipe
from deblur.models.critic import DenseCritic, PatchCritic
from deblur.models.generator import ResNetGenerator, UNetGenerator


def build_generator(recipe: Recipe) -> nn.Module:
    """The generator of a recipe, with fresh weights from torch's global random state."""
    wanted = recipe.generator
    shared = {"filters": wanted.filters, "norm": wanted.norm, "dropout": wanted.dropout}
    shared |= {"upsampling": wanted.upsampling, "output": wanted.output}
    if wanted.architecture == "unet":
        return UNetGenerator(**shared)
    return ResNetGenerator(blocks=wanted.blocks, **shared)


def build_critic(recipe: Recipe) -> nn.Module:
    """The critic of a recipe, with fresh weights from torch's global random state."""
    wanted = recipe.critic
    if wanted.architecture == "dense":
        return DenseCritic(filters=wanted.filters, norm=wanted.norm, crop=recipe.data.crop)
    return PatchCritic(filters=wanted.filters, layers=wanted.layers, norm=wanted.norm)
