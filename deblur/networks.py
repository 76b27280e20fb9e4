"""The networks of a run: built, wrapped for the ranks, warmed up, loaded, packed into a checkpoint."""

import io
import logging
from contextlib import nullcontext
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import nn

from cluster.checkpoints import Checkpoint
from cluster.errors import InputError
from cluster.sync import Rank, Sync
from deblur import randomness
from deblur import recipe as recipes
from deblur.models.layers import mixes_images
from deblur.models.vgg import Features
from deblur.recipe import Recipe, build_critic, build_generator
from deblur.run import Run
from deblur.update import Autocast, Updater

_log = logging.getLogger(__name__)


def build(recipe: Recipe, features: Features, rank: Rank) -> Updater:
    """Networks with the recipe's fresh weights, the same on every rank, wrapped for as many ranks as there are."""
    with torch.random.fork_rng():
        torch.manual_seed(randomness.weights_seed(recipe.seed))
        generator, critic = build_generator(recipe).to(rank.device), build_critic(recipe).to(rank.device)
    if in_bfloat16(recipe, rank.device):
        # The faster order in bfloat16, and the slower one in float32 (benchmarks/README.md).
        for network in (generator, critic, features):
            network.to(memory_format=torch.channels_last)
    scale = rank.num_ranks / recipe.data.batch_size
    generator, critic = (distributed(network, rank) for network in (generator, critic))
    return Updater(generator, critic, features, recipe, scale, autocast_for(recipe, rank.device))


def distributed(network: nn.Module, rank: Rank) -> nn.Module:
    """The network in DistributedDataParallel where there are other ranks, with BatchNorm over all of them on GPUs."""
    if rank.num_ranks == 1:
        return network
    if mixes_images(network):
        if rank.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        elif rank.rank == 0:
            _log.warning("BatchNorm on CPUs: each rank normalises by its own images, so results depend on the ranks")
    return nn.parallel.DistributedDataParallel(network, [rank.device] if rank.device.type == "cuda" else None)


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


def warmed_up(updater: Updater, recipe: Recipe, share: int, device: torch.device) -> dict[str, Any]:
    """Makes one throw-away update and returns the state before it.

    DistributedDataParallel rebuilds its buckets after the first backward, which changes the order of sums from three
    ranks on: so every start, resumed or not, has that behind it before its first real update (design section 5).
    """
    buffer = io.BytesIO()
    torch.save(updater.state(), buffer)  # a copy that the update cannot reach
    side = recipe.data.crop
    noise = torch.rand(2, share, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    mixes = torch.full((recipe.loss.critic_updates, share, 1, 1, 1), 0.5, device=device)
    updater.update(noise[0], noise[1], mixes)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, map_location=device)


def load(updater: Updater, fresh: dict[str, Any], run: Run, sync: Sync, rank: Rank) -> int:
    """Loads the newest checkpoint that verifies, or the fresh state; returns images_seen."""
    checkpoint: Checkpoint | None = sync.meet(run.checkpoints.resume)
    if checkpoint is None:
        updater.load(fresh)
        return 0
    data = run.checkpoints.load_part(checkpoint, "state.pt")
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location=rank.device)
        updater.load(state["updater"])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{run.url}: its checkpoint has other networks ({reason}); choose another --run") from error
    if rank.rank == 0:
        print(f"{run.url}: going on from {checkpoint.images_seen} images", flush=True)
    return state["images_seen"]


def checkpoint_parts(updater: Updater, recipe: Recipe, images_seen: int) -> dict[str, bytes]:
    """The files of a checkpoint."""
    state = io.BytesIO()
    torch.save({"updater": updater.state(), "images_seen": images_seen}, state)
    text = recipes.to_json(recipe)
    weights = {name: tensor.contiguous() for name, tensor in updater.state()["generator"].items()}
    # One entry of metadata: the order of several is random, and equal weights should be equal bytes.
    generator = safetensors.torch.save(weights, metadata={"recipe": text})
    # The smallest first: what a killed upload leaves is then seen, and removed, by the next.
    return {"recipe.json": text.encode(), "generator.safetensors": generator, "state.pt": state.getvalue()}
