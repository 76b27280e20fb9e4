"""One update: `critic_updates` critic steps and one generator step, on one batch and one generator forward.

Both networks may be wrapped in DistributedDataParallel. The critic's gradients are reduced in critic steps only, the
generator's in the generator step only; the sharp, restored and penalty terms of a critic step share one backward,
because DDP reduces gradients once per forward. Nothing here synchronises with the device.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deblur.config.recipes import AdamRecipe, LossRecipe
from deblur.models.layers import has_batch_norm
from deblur.models.vgg import Features
from deblur.training.losses import content_distance, critic_terms, generator_term, gradient_penalty

Autocast = Callable[[], AbstractContextManager[Any]]  # a new context for each forward

# What `Updater.update` returns, in the order of the tensor.
TERMS = (
    "content",
    "pixel",
    "adversarial",
    "penalty",
    "sharp_score",
    "restored_score",
    "generator_gradient_norm",
    "critic_gradient_norm",
    "nonfinite",
)


@dataclass(frozen=True)
class StepContext:
    """What both steps need beside networks and pictures."""

    loss: LossRecipe
    scale: float
    """Factor of each image's loss: num_ranks / batch_size makes DDP's mean over ranks the mean over the batch."""
    autocast: Autocast = nullcontext


@dataclass(frozen=True)
class CriticTerms:
    """Per image, [B], detached; unweighted."""

    sharp_score: Tensor
    restored_score: Tensor
    penalty: Tensor


@dataclass(frozen=True)
class GeneratorTerms:
    """Per image, [B], detached; unweighted."""

    content: Tensor
    pixel: Tensor
    adversarial: Tensor


def critic_step(critic: nn.Module, sharp: Tensor, restored: Tensor, mix: Tensor, context: StepContext) -> CriticTerms:
    """Forward and backward of the critic's loss; leaves gradients in the critic's parameters.

    sharp, restored  [B, 3, H, W]  RGB in [-1, 1]; restored without a graph
    mix              [B, 1, 1, 1]  in [0, 1), for the gradient penalty
    """
    loss = context.loss

    def scores(pictures: Tensor) -> Tensor:
        with context.autocast():
            return _upcast(unwrap_ddp(critic)(pictures))

    with context.autocast():
        if has_batch_norm(critic):  # sharp and restored pictures are normalised separately
            # One forward through DDP prepares it for the one backward; a second would overwrite the running
            # statistics under the first one's graph.
            sharp_scores, restored_scores = _upcast(critic(sharp)), _upcast(unwrap_ddp(critic)(restored))
        else:
            sharp_scores, restored_scores = _upcast(critic(torch.cat([sharp, restored]))).chunk(2)
    per_image = critic_terms(loss.objective, sharp_scores, restored_scores)
    penalty = torch.zeros_like(per_image)
    if loss.objective == "wgan-gp":
        penalty = gradient_penalty(scores, sharp, restored, mix)
    (context.scale * (per_image + loss.penalty_weight * penalty).sum()).backward()
    return CriticTerms(_per_image(sharp_scores), _per_image(restored_scores), penalty.detach())


def generator_step(
    critic: nn.Module, features: Features, sharp: Tensor, restored: Tensor, context: StepContext
) -> GeneratorTerms:
    """Forward and backward of the generator's loss (arXiv:1711.07064, section 3.1); leaves gradients in the generator.

    sharp, restored  [B, 3, H, W]  RGB in [-1, 1]; restored with the generator's graph
    """
    loss = context.loss
    critic.requires_grad_(False)
    with context.autocast():
        adversarial = generator_term(loss.objective, _upcast(unwrap_ddp(critic)(restored)))
        with torch.no_grad():
            sharp_features = _upcast(features(sharp))
        content = content_distance(_upcast(features(restored)), sharp_features)
    pixel = (restored - sharp).abs().mean(dim=(1, 2, 3))
    total = loss.content_weight * content + loss.pixel_weight * pixel + loss.adversarial_weight * adversarial
    (context.scale * total.sum()).backward()
    critic.requires_grad_(True)
    return GeneratorTerms(content.detach(), pixel.detach(), adversarial.detach())


class Updater:
    """The networks, their optimisers, and one update of both.

    `generator` and `critic` are modules on their device, or the same in DistributedDataParallel.
    """

    def __init__(
        self, generator: nn.Module, critic: nn.Module, features: Features, adam: AdamRecipe, context: StepContext
    ) -> None:
        self.generator, self.critic, self.features, self.context = generator, critic, features, context
        betas = (adam.beta1, adam.beta2)
        # Fused Adam takes `found_inf` on the device: a step is skipped without synchronising with the host.
        self.generator_adam = torch.optim.Adam(generator.parameters(), adam.generator_lr, betas, fused=True)
        self.critic_adam = torch.optim.Adam(critic.parameters(), adam.critic_lr, betas, fused=True)

    def set_lrs(self, generator_lr: float, critic_lr: float) -> None:
        """Learning rates of the next update."""
        self.generator_adam.param_groups[0]["lr"] = generator_lr
        self.critic_adam.param_groups[0]["lr"] = critic_lr

    def update(
        self, blurred: Tensor, sharp: Tensor, mixes: Tensor, on_phase_end: Callable[[str], None] = lambda _: None
    ) -> Tensor:
        """One update of both networks.

        blurred, sharp  [B, 3, H, W]                  RGB in [-1, 1], this rank's share
        mixes           [critic_updates, B, 1, 1, 1]  in [0, 1)
        returns         [len(TERMS)] on the device: this rank's sums over images x scale, so that the mean over ranks is
                        the mean over the batch; gradient norms and the non-finite flag are equal on all ranks
        on_phase_end    called with "generator" or "critic" when work for it has been queued on the device
        """
        with self.context.autocast():
            restored = _upcast(self.generator(blurred))
        on_phase_end("generator")
        all_norms = torch.zeros((), device=sharp.device)
        for mix in mixes:
            self.critic_adam.zero_grad()
            critic = critic_step(self.critic, sharp, restored.detach(), mix, self.context)
            critic_norm = _step(self.critic_adam)
            all_norms = all_norms + critic_norm
        on_phase_end("critic")
        self.generator_adam.zero_grad()
        generator = generator_step(self.critic, self.features, sharp, restored, self.context)
        generator_norm = _step(self.generator_adam)
        on_phase_end("generator")
        sums = [generator.content, generator.pixel, generator.adversarial]
        sums += [critic.penalty, critic.sharp_score, critic.restored_score]
        nonfinite = ~torch.isfinite(all_norms + generator_norm)  # any step that was skipped
        return torch.stack([*(self.context.scale * s.sum() for s in sums), generator_norm, critic_norm, nonfinite])

    def state(self) -> dict[str, Any]:
        """Everything that must survive a restart; `load` takes it back."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Raises KeyError or RuntimeError where the state is of another architecture."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "generator": unwrap_ddp(self.generator),
            "critic": unwrap_ddp(self.critic),
            "generator_adam": self.generator_adam,
            "critic_adam": self.critic_adam,
        }


def _step(adam: torch.optim.Adam) -> Tensor:
    """One optimiser step, skipped on the device where a gradient is not finite; returns the gradient's norm, [].

    The norm is that of the reduced gradient, equal on all ranks: they agree on skipping without communicating.
    """
    norm = torch.nn.utils.get_total_norm(p.grad for p in adam.param_groups[0]["params"] if p.grad is not None)
    adam.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # read by fused Adam's step
    adam.step()
    return norm


def _upcast(values: Tensor) -> Tensor:
    """bfloat16 to float32; float32 and float64 as they are."""
    return values.float() if values.dtype is torch.bfloat16 else values


def _per_image(scores: Tensor) -> Tensor:
    return scores.detach().flatten(1).mean(dim=1)


def unwrap_ddp(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel: for passes whose gradients must not be reduced, or already are."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
