"""Save and restore the training state: networks, optimisers, images seen."""

import io
from typing import Any

import torch

from cluster.errors import Diverged, InputError
from cluster.storage.checkpoints import Checkpoint
from cluster.sync import Rank, Sync
from deblur.config import recipes
from deblur.config.recipes import Recipe
from deblur.models.weights import encode_generator
from deblur.training.run import Run
from deblur.training.update import Updater


def warm_up(updater: Updater, recipe: Recipe, share: int, device: torch.device) -> dict[str, Any]:
    """Makes one throw-away update and returns the state before it.

    DistributedDataParallel rebuilds its buckets after the first backward, which changes the order of sums with three
    ranks or more: so every start, resumed or not, does that before its first real update (docs/design.md).
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
    found = run.checkpoints.resume() if rank.rank == 0 else None
    checkpoint: Checkpoint | None = sync.broadcast_from_rank0(lambda: found and found[0])
    if checkpoint is None:
        updater.load(fresh)
        return 0
    data = found[1]["state.pt"] if found else run.checkpoints.load_part(checkpoint, "state.pt")
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location=rank.device)
        updater.load(state["updater"])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{run.url}: its checkpoint has other networks ({reason}); choose another --run") from error
    run.log(f"resuming at {checkpoint.images_seen:,} images")
    return state["images_seen"]


def save(updater: Updater, recipe: Recipe, images_seen: int, run: Run, score: float | None) -> None:
    """Starts the upload of a checkpoint by the rank that writes the run. Raises Diverged if weights are not finite."""
    if run.writes:
        for name, tensor in updater.result.state_dict().items():
            if not tensor.isfinite().all():
                raise Diverged(
                    f"{run.url}: {name} is not finite at {images_seen:,} images, so there is no checkpoint; lower the "
                    "learning rates (--allow-recipe-change) or choose --precision float32"
                )
        run.save(images_seen, checkpoint_parts(updater, recipe, images_seen), score)


def checkpoint_parts(updater: Updater, recipe: Recipe, images_seen: int) -> dict[str, bytes]:
    """The files of a checkpoint."""
    state = io.BytesIO()
    torch.save({"updater": updater.state(), "images_seen": images_seen}, state)
    generator = encode_generator(updater.result.state_dict(), recipe)
    # The smallest first: what a killed upload leaves is then seen, and removed, by the next.
    return {
        "recipe.json": recipes.to_json(recipe).encode(),
        "generator.safetensors": generator,
        "state.pt": state.getvalue(),
    }
