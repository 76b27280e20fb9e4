"""Speed of an update of generator and critic, compared with the original code and the hardware limit.

python -m benchmarks.update --recipe paper --image-size 256 --batch-size 1 --steps 3 --json

`naive` is a plain reading of DeblurGAN's code (github.com/KupynOrest/DeblurGAN, models/conditional_gan_model.py and
losses.py): eager float32, default Adam, unused gradients of the weights of critic and VGG in the generator step, a
graph for the features of the sharp picture, critic padding of 2. Updates of both alternate in one process. The ceiling
is a large matrix product in the dtype that ours uses.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import flops
from benchmarks.command import option, run
from benchmarks.memory import peak_bytes
from benchmarks.timing import alternate, pick_device, seconds
from cluster.sync import Rank
from deblur.config import presets
from deblur.config.recipes import Recipe, with_flags
from deblur.models.build import build_generator
from deblur.models.vgg import load_features
from deblur.training.distributed import build, computation, in_bfloat16
from deblur.training.update import Updater

CEILING_SIDE = {"cpu": 4096, "cuda": 16384}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}  # float32 values


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = option("paper", "Preset; naive always uses the paper's critic and penalty.")
    image_size: int | None = option(None, "Side of the pictures; default: the recipe's crop.")
    batch_size: int | None = option(None, "Pictures per update; default: the recipe's.")
    precision: str = option("auto", "auto, float32 or bfloat16, of ours; naive is always float32.")
    steps: int = option(3, "Updates of each kind per round.")
    rounds: int = option(3, "Rounds.")
    memory: bool = option(True, "Also measure peak memory, in a separate process per kind.")
    json: bool = option(False, "Print one line of JSON at the end.")


class Naive:
    """The update of the original code."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.loss, self.device = recipe.loss, device
        self.generator = build_generator(recipe).to(device)
        self.critic = plain_critic(recipe.critic.filters, recipe.critic.layers).to(device)
        self.features = load_features(recipe.loss.features, "random", None).to(device).requires_grad_(True)
        betas = (recipe.adam.beta1, recipe.adam.beta2)
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), recipe.adam.generator_lr, betas)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), recipe.adam.critic_lr, betas)

    def update(self, blurred: Tensor, sharp: Tensor) -> None:
        """One update of both networks on [B, 3, H, W] in [-1, 1]."""
        restored = self.generator(blurred)
        for _ in range(self.loss.critic_updates):
            self.critic_adam.zero_grad()
            gap = self.critic(restored.detach()).mean() - self.critic(sharp).mean()
            (gap + self.loss.penalty_weight * self._penalty(sharp, restored.detach())).backward(retain_graph=True)
            self.critic_adam.step()
        self.generator_adam.zero_grad()
        adversarial = -self.critic(restored).mean()
        content = nn.functional.mse_loss(self.features(restored), self.features(sharp).detach())
        (adversarial + self.loss.content_weight * content).backward()
        self.generator_adam.step()

    def _penalty(self, sharp: Tensor, restored: Tensor) -> Tensor:
        mix = torch.rand(1, 1, device=self.device).expand(sharp.shape)  # one draw per batch, as in the original
        between = (mix * sharp + (1 - mix) * restored).requires_grad_()
        scores = self.critic(between)
        (gradient,) = torch.autograd.grad(scores, between, torch.ones_like(scores), create_graph=True)
        return (gradient.norm(2, dim=1) - 1).square().mean()  # over channels only, as in the original


def plain_critic(filters: int, layers: int) -> nn.Module:
    """NLayerDiscriminator of models/networks.py, with its padding of ceil((4 - 1) / 2) = 2."""
    widths = [3, *(filters * min(2**level, 8) for level in range(layers + 1))]
    stages: list[nn.Module] = []
    for level in range(layers + 1):
        stages += [nn.Conv2d(widths[level], widths[level + 1], 4, 2 if level < layers else 1, 2)]
        stages += [nn.InstanceNorm2d(widths[level + 1])] if level else []
        stages += [nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, 1, 2))


def recipe_of(settings: Settings) -> Recipe:
    """The preset with size and batch of the settings; random features, which cost the same as trained ones."""
    recipe = presets.PRESETS[settings.recipe]()
    own = {"crop": settings.image_size, "batch_size": settings.batch_size}
    changes = {name: value for name, value in own.items() if value}
    return with_flags(recipe, {"feature_weights": "random", "precision": settings.precision, **changes})


def updates(recipe: Recipe, device: torch.device) -> dict[str, Callable[[], Any]]:
    """One update of each kind."""
    updater, other = updater_of(recipe, device), Naive(recipe, device)
    blurred, sharp, mixes = batch_of(recipe, device)
    return {
        "ours": lambda: updater.update(blurred, sharp, mixes),
        "naive": lambda: other.update(blurred, sharp),
    }


def updater_of(recipe: Recipe, device: torch.device) -> Updater:
    """An updater with random weights on one rank."""
    return build(recipe, load_features(recipe.loss.features, "random", None).to(device), Rank(device=device))


def batch_of(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Noise in the shapes that `Updater.update` takes."""
    shape = (recipe.data.batch_size, 3, recipe.data.crop, recipe.data.crop)
    mixes = torch.full((recipe.loss.critic_updates, recipe.data.batch_size, 1, 1, 1), 0.5, device=device)
    return *(2 * torch.rand(shape, device=device) - 1 for _ in range(2)), mixes


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    recipe, device = recipe_of(settings), pick_device()
    kinds = updates(recipe, device)
    for update in kinds.values():
        update()  # warms up
    turns = alternate(kinds, settings.rounds, settings.steps)
    median = {kind: statistics.median(found) for kind, found in turns.items()}
    done, moved = counted(recipe, device), counted(recipe, device, flops.values)
    dtype = torch.bfloat16 if in_bfloat16(recipe, device) else torch.float32
    ceiling, bandwidth = matmul_rate(device, dtype), copy_rate(device)
    figures = {
        "images_per_second": recipe.data.batch_size / median["ours"],
        "naive_images_per_second": recipe.data.batch_size / median["naive"],
        "times_faster": median["naive"] / median["ours"],
        "times_faster_of_each_round": [a / b for a, b in zip(turns["naive"], turns["ours"], strict=True)],
        "gflop_per_update": done["ours"] / 1e9,
        "naive_gflop_per_update": done["naive"] / 1e9,
        "dtype": str(dtype).removeprefix("torch."),
        "computation": computation(recipe, device),
        "matmul_gflop_per_second": ceiling / 1e9,
        "share_of_ceiling": done["ours"] / median["ours"] / ceiling,
        "floor_seconds": done["ours"] / ceiling,
        "gb_moved_per_update": moved["ours"] * dtype.itemsize / 1e9,
        "copy_gb_per_second": bandwidth / 1e9,
        "floor_seconds_of_bytes": moved["ours"] * dtype.itemsize / bandwidth,
        "seconds_per_update": median["ours"],
    }
    if settings.memory:
        figures |= {f"{kind}_peak_bytes": peak_bytes(two_updates, kind, settings) for kind in kinds}
    return figures


def counted(
    recipe: Recipe, device: torch.device, of: Callable[[Any, Tensor, Tensor], int] = flops.operations
) -> dict[str, int]:
    """Operations, or values moved, in one update of each kind, computed from the shapes."""
    own, other = updater_of(recipe, device), Naive(recipe, device)
    size = (recipe.data.batch_size, recipe.data.crop)

    def count(formula: Callable[..., int], made: Updater | Naive) -> int:
        parts = [flops.forward_of(part, *size, of) for part in (made.generator, made.critic, made.features)]
        return formula(*parts, recipe.loss.critic_updates)

    return {"ours": count(flops.ours, own), "naive": count(flops.naive, other)}


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Operations per second of a large matrix product, the ceiling of the device."""
    side = side or CEILING_SIDE[device.type]
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b) for _ in range(6))


def copy_rate(device: torch.device, values: int | None = None) -> float:
    """Bytes read and written per second by a copy larger than the caches."""
    source = torch.rand(values or COPIED[device.type], device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(6))


def two_updates(kind: str, settings: Settings) -> None:
    """The function whose memory is measured."""
    update = updates(recipe_of(settings), pick_device())[kind]
    for _ in range(2):
        update()


if __name__ == "__main__":
    run("update", __doc__, Settings, measure)
