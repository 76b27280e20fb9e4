"""Published PyTorch weights of NAFNet and DeblurGAN, as generators with a recipe inferred from the tensors."""

import re

import torch
from torch import Tensor

from cluster.errors import InputError
from deblur.config.recipes import GeneratorRecipe, Recipe
from deblur.models.build import build_generator
from deblur.models.weights import read_weights, refuse_other_tensors

Weights = dict[str, Tensor]

_NAFNET = "expected a .pth of github.com/megvii-research/NAFNet, such as NAFNet-GoPro-width32.pth"
_DEBLURGAN = "expected latest_net_G.pth of github.com/KupynOrest/DeblurGAN (resnet_9blocks, instance norm)"
# InstanceNorm of old PyTorch saved running statistics, which neither training nor DeblurGAN's test.py uses.
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def read_nafnet(source: str) -> tuple[Weights, Recipe]:
    """The weights and the recipe of a published NAFNet of any width and number of blocks.

    source  file or s3:// URL of {"params": state dict}, or of the state dict

    Raises InputError naming the source and the tensor if it holds anything else.
    """
    state = _read(source, _NAFNET)
    levels = range(max(1, _count(state, r"downs\.(\d+)\.")))
    generator = GeneratorRecipe(
        architecture="nafnet",
        filters=_filters(state, "intro.weight", 32),
        encoder_blocks=tuple(_count(state, rf"encoders\.{level}\.(\d+)\.") for level in levels),
        middle_blocks=_count(state, r"middle_blks\.(\d+)\."),
        decoder_blocks=tuple(_count(state, rf"decoders\.{level}\.(\d+)\.") for level in levels),
    )
    recipe = Recipe(name="nafnet", generator=generator)  # published networks, too, were trained on crops of 256
    return _checked(state, {name: name for name in _shapes(recipe)}, recipe, source, _NAFNET), recipe


def read_deblurgan(source: str) -> tuple[Weights, Recipe]:
    """The weights and the recipe of a published DeblurGAN: a ResNet with InstanceNorm, of any width and depth.

    Tensors do not show `learn_residual`; it is assumed, as DeblurGAN's README has it.

    source  file or s3:// URL of a state dict

    Raises InputError naming the source and the tensor if it holds anything else.
    """
    state = {name: tensor for name, tensor in _read(source, _DEBLURGAN).items() if not name.endswith(_STATISTICS)}
    blocks = max(1, _count(state, r"model\.(\d+)\.conv_block\.1\.weight"))
    dropout = 0.0 if "model.10.conv_block.5.weight" in state else 0.5  # dropout shifts the second convolution to 6
    generator = GeneratorRecipe(filters=_filters(state, "model.1.weight", 64), blocks=blocks, dropout=dropout)
    recipe = Recipe(name="deblurgan", generator=generator)
    names = {_deblurgan_name(name, blocks): name for name in _shapes(recipe)}
    return _checked(state, names, recipe, source, _DEBLURGAN), recipe


def _deblurgan_name(name: str, blocks: int) -> str:
    """DeblurGAN's name of our tensor: it numbers all layers in a row, three per convolution and one per block."""
    module, position, rest = name.split(".", 2)
    if module == "blocks":
        return f"model.{10 + int(position)}.conv_block.{rest.removeprefix('change.')}"
    first_layer = {"first": 0, "down1": 4, "down2": 7, "up2": 10, "up1": 13, "last": 16}[module]
    return f"model.{first_layer + int(position) + (blocks if first_layer >= 10 else 0)}.{rest}"


def _read(source: str, hint: str) -> Weights:
    """Without DataParallel's prefix."""
    state = read_weights(source, hint, nested="params")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _checked(state: Weights, names: dict[str, str], recipe: Recipe, source: str, hint: str) -> Weights:
    """The tensors in float32 by our names; `names` maps published ones to ours."""
    shapes = _shapes(recipe)
    refuse_other_tensors({published: shapes[name] for published, name in names.items()}, state, source, hint)
    weights = {}
    for published, name in names.items():
        if not state[published].is_floating_point() or not state[published].float().isfinite().all():
            raise InputError(f"{source}: tensor {published} is not of finite floating-point numbers; {hint}")
        weights[name] = state[published].to(torch.float32, copy=True)  # safetensors refuses tensors that share memory
    return weights


def _shapes(recipe: Recipe) -> Weights:
    """The generator's tensors without memory for them: the file's sizes are not yet trusted."""
    with torch.device("meta"):
        return build_generator(recipe).state_dict()


def _count(state: Weights, pattern: str) -> int:
    """How many different numbers the names that start with the pattern have at its group."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _filters(state: Weights, name: str, default: int) -> int:
    """The number of output channels of a convolution; `default` if it is missing, which is then refused by name."""
    return max(1, state[name].shape[0]) if name in state and state[name].dim() else default
