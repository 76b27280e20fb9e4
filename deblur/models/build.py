"""Builds the networks of a recipe."""

from typing import Any

from torch import nn

from deblur.config.recipes import Recipe
from deblur.models.critic import DenseCritic, PatchCritic
from deblur.models.deconvolution_unet import DeconvolutionUNet
from deblur.models.fast_unet import FastUNet
from deblur.models.generator import ResNetGenerator, UNetGenerator
from deblur.models.maxim import Maxim
from deblur.models.nafnet import NAFNet


def build_generator(recipe: Recipe) -> nn.Module:
    """The generator of a recipe, with initial weights from torch's global random state."""
    g = recipe.generator
    shared: dict[str, Any] = {
        "norm": g.norm,
        "dropout": g.dropout,
        "upsampling": g.upsampling,
        "output": g.output,
    }
    levels: dict[str, Any] = {name: getattr(g, name) for name in ("encoder_blocks", "middle_blocks", "decoder_blocks")}
    match g.architecture:
        case "resnet":
            return ResNetGenerator(filters=g.filters, blocks=g.blocks, **shared)
        case "unet":
            return UNetGenerator(filters=g.filters, **shared)
        case "fast-unet":
            return FastUNet(filters=g.filters, **levels)
        case "deconvolution-unet":
            return DeconvolutionUNet(filters=g.filters, **levels)
        case "nafnet":
            return NAFNet(filters=g.filters, **levels, train_crop=recipe.data.crop)
        case "maxim":
            return Maxim()  # one published network: the other fields do not apply


def build_critic(recipe: Recipe) -> nn.Module:
    """The critic of a recipe, with initial weights from torch's global random state."""
    c = recipe.critic
    if c.architecture == "dense":
        return DenseCritic(filters=c.filters, norm=c.norm, crop=recipe.data.crop)
    return PatchCritic(filters=c.filters, layers=c.layers, norm=c.norm)
