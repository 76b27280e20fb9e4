"""The networks of a run, built for its device and its world size."""

import logging
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from cluster.sync import Rank
from deblur.config import randomness
from deblur.config.recipes import Recipe
from deblur.models.build import build_critic, build_generator
from deblur.models.layers import has_batch_norm
from deblur.models.vgg import Features
from deblur.training.schedule import uses_critic
from deblur.training.update import Autocast, StepContext, Updater

_log = logging.getLogger(__name__)


def build(recipe: Recipe, features: Features | None, rank: Rank, initial: dict[str, Tensor] | None = None) -> Updater:
    """Networks with the recipe's fresh weights, the same on every rank, wrapped in DDP if there are several.

    initial  weights that the generator starts from instead
    """
    networks: dict[str, nn.Module] = {}
    with torch.random.fork_rng():
        torch.manual_seed(randomness.weights_seed(recipe.seed))
        networks["generator"] = build_generator(recipe).to(rank.device)
        if uses_critic(recipe):
            networks["critic"] = build_critic(recipe).to(rank.device)
    if initial is not None:
        networks["generator"].load_state_dict(initial)
    if _wants_channels_last(recipe, rank.device):
        for network in (*networks.values(), *([] if features is None else [features])):
            network.to(memory_format=torch.channels_last)
    trained = {name: distributed(network, rank) for name, network in networks.items()}
    context = StepContext(recipe.loss, rank.num_ranks / recipe.data.batch_size, autocast_for(recipe, rank.device))
    return Updater(trained["generator"], trained.get("critic"), features, recipe.adam, context)


def _wants_channels_last(recipe: Recipe, device: torch.device) -> bool:
    """Faster for U-Nets of plain convolutions, and else in bfloat16 with many channels (benchmarks/README.md)."""
    if recipe.generator.architecture in ("fast-unet", "deconvolution-unet") and not uses_critic(recipe):
        return True
    return in_bfloat16(recipe, device) and min(recipe.generator.filters, recipe.critic.filters) >= 32


def computation(recipe: Recipe, device: torch.device) -> str:
    """What the recipe's "auto" comes to on a device, as text: "bfloat16, channels last, on cpu"."""
    precision = "bfloat16" if in_bfloat16(recipe, device) else "float32"
    return f"{precision}{', channels last' * _wants_channels_last(recipe, device)}, on {device.type}"


def distributed(network: nn.Module, rank: Rank) -> nn.Module:
    """The network in DistributedDataParallel if there are several ranks, with SyncBatchNorm on GPUs."""
    if rank.num_ranks == 1:
        return network
    if has_batch_norm(network):
        if rank.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        elif rank.rank == 0:
            _log.warning(
                "BatchNorm on CPUs: each rank normalises over its own images, so results depend on the world size"
            )
    devices = [rank.device] if rank.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, devices, gradient_as_bucket_view=True)


def autocast_for(recipe: Recipe, device: torch.device) -> Autocast:
    """The context of forwards."""
    return partial(torch.autocast, device.type, dtype=torch.bfloat16) if in_bfloat16(recipe, device) else nullcontext


def in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the recipe asks for it, or asks for auto and the hardware multiplies bfloat16 natively."""
    return recipe.precision == "bfloat16" or (recipe.precision == "auto" and _multiplies_bfloat16(device))


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # By AMX or AVX512-BF16: convolutions are about twice as fast as in float32.
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
