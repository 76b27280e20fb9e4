"""The networks of a run: built for its device and its number of ranks."""

import logging
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from cluster.sync import Rank
from deblur.config import randomness
from deblur.config.recipes import Recipe
from deblur.models.build import build_critic, build_generator
from deblur.models.layers import has_batch_norm
from deblur.models.vgg import Features
from deblur.training.update import Autocast, Updater

_log = logging.getLogger(__name__)


def build(recipe: Recipe, features: Features, rank: Rank) -> Updater:
    """Networks with the recipe's fresh weights, the same on every rank, wrapped for as many ranks as there are."""
    with torch.random.fork_rng():
        torch.manual_seed(randomness.weights_seed(recipe.seed))
        generator, critic = build_generator(recipe).to(rank.device), build_critic(recipe).to(rank.device)
    if in_bfloat16(recipe, rank.device) and min(recipe.generator.filters, recipe.critic.filters) >= 32:
        # The faster order there; the slower one in float32, and for fewer channels (benchmarks/README.md).
        for network in (generator, critic, features):
            network.to(memory_format=torch.channels_last)
    scale = rank.num_ranks / recipe.data.batch_size
    generator, critic = (distributed(network, rank) for network in (generator, critic))
    return Updater(generator, critic, features, recipe, scale, autocast_for(recipe, rank.device))


def distributed(network: nn.Module, rank: Rank) -> nn.Module:
    """The network in DistributedDataParallel where there are other ranks, with BatchNorm over all of them on GPUs."""
    if rank.num_ranks == 1:
        return network
    if has_batch_norm(network):
        if rank.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        elif rank.rank == 0:
            _log.warning("BatchNorm on CPUs: each rank normalises by its own images, so results depend on the ranks")
    devices = [rank.device] if rank.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, devices, gradient_as_bucket_view=True)


def autocast_for(recipe: Recipe, device: torch.device) -> Autocast:
    """What forwards run in."""
    return partial(torch.autocast, device.type, dtype=torch.bfloat16) if in_bfloat16(recipe, device) else nullcontext


def in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the recipe says so, or says auto and the hardware multiplies it natively."""
    return recipe.precision == "bfloat16" or (recipe.precision == "auto" and _multiplies_bfloat16(device))


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()
