"""One update: `critic_updates` critic steps and one generator step, on one batch and one generator forward.

Without the adversarial term, or before it begins, there is the generator step alone.

Both networks may be wrapped in DistributedDataParallel. The critic's gradients are reduced in critic steps only, the
generator's in the generator step only; the sharp, restored and penalty terms of a critic step share one backward,
because DDP reduces gradients once per forward. Nothing here synchronises with the device.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from deblur.config.recipes import AdamRecipe, LossRecipe
from deblur.models.layers import has_batch_norm
from deblur.models.vgg import Features
from deblur.training.losses import (
    content_distance,
    critic_terms,
    frequency_distance,
    generator_term,
    gradient_penalty,
    pixel_distance,
)
from deblur.training.schedule import UpdateSettings

Autocast = Callable[[], AbstractContextManager[Any]]  # a new context for each forward

# What `Updater.update` returns, in the order of the tensor.
TERMS = (
    "content",
    "pixel",
    "frequency",
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
    frequency: Tensor
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
    critic: nn.Module | None, features: Features | None, sharp: Tensor, restored: Tensor, context: StepContext
) -> GeneratorTerms:
    """Forward and backward of the generator's loss (arXiv:1711.07064, section 3.1); leaves gradients in the generator.

    sharp, restored   [B, 3, H, W]  RGB in [-1, 1]; restored with the generator's graph
    critic, features  None without the adversarial and the content term, which are then 0
    """
    loss, none = context.loss, restored.new_zeros(len(restored))
    content = frequency = adversarial = none
    with context.autocast():
        if critic is not None:
            adversarial = _adversarial(unwrap_ddp(critic), sharp, restored, loss)
        if features is not None:
            with torch.no_grad():
                sharp_features = _upcast(features(sharp))
            content = content_distance(_upcast(features(restored)), sharp_features)
    pixel = pixel_distance(restored, sharp, loss.pixel_loss)
    if loss.frequency_weight:
        frequency = frequency_distance(restored, sharp)
    total = loss.content_weight * content + loss.pixel_weight * pixel + loss.adversarial_weight * adversarial
    total = total + loss.frequency_weight * frequency
    (context.scale * total.sum()).backward()
    return GeneratorTerms(content.detach(), pixel.detach(), frequency.detach(), adversarial.detach())


def _adversarial(critic: nn.Module, sharp: Tensor, restored: Tensor, loss: LossRecipe) -> Tensor:
    """The critic's judgement of each image, [B]; no gradient goes to the critic."""
    critic.requires_grad_(False)
    restored_scores = _upcast(critic(restored))
    sharp_scores = restored_scores
    if loss.objective == "relativistic-least-squares":
        with torch.no_grad():
            sharp_scores = _upcast(critic(sharp))
    critic.requires_grad_(True)
    return generator_term(loss.objective, sharp_scores, restored_scores)


class Updater:
    """The networks, their optimisers, and one update of both.

    `generator` and `critic` are modules on their device, or the same in DistributedDataParallel; `critic` and
    `features` are None in a run without the adversarial or the content term.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module | None,
        features: Features | None,
        adam: AdamRecipe,
        context: StepContext,
    ) -> None:
        self.generator, self.critic, self.features, self.context = generator, critic, features, context
        self._gradient_clip = adam.gradient_clip
        self.generator_adam = _adam(generator, adam.generator_lr, adam, adam.weight_decay)
        self.critic_adam = _adam(critic, adam.critic_lr, adam) if critic is not None else None
        average = copy.deepcopy(unwrap_ddp(generator)) if adam.ema_halflife_images else None
        self.average = average.requires_grad_(False) if average is not None else None
        self._settings = UpdateSettings(adam.generator_lr, adam.critic_lr)

    @property
    def result(self) -> nn.Module:
        """The generator that is validated and exported: the moving average if there is one."""
        return unwrap_ddp(self.generator) if self.average is None else self.average

    def set(self, settings: UpdateSettings) -> None:
        """Settings of the next update."""
        self._settings = settings
        self.generator_adam.param_groups[0]["lr"] = settings.generator_lr
        if self.critic_adam is not None:
            self.critic_adam.param_groups[0]["lr"] = settings.critic_lr

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
        critic, features = (self.critic, self.features) if self._settings.adversarial else (None, None)
        with self.context.autocast():
            restored = _upcast(self.generator(blurred))
        on_phase_end("generator")
        critic_terms, critic_norm, all_norms = self._critic_steps(critic, sharp, restored.detach(), mixes)
        on_phase_end("critic")
        self.generator_adam.zero_grad()
        generator = generator_step(critic, features, sharp, restored, self.context)
        generator_norm = _step(self.generator_adam, self._gradient_clip)
        self._add_to_average()
        on_phase_end("generator")
        sums = [generator.content, generator.pixel, generator.frequency, generator.adversarial]
        sums += [critic_terms.penalty, critic_terms.sharp_score, critic_terms.restored_score]
        nonfinite = ~torch.isfinite(all_norms + generator_norm)  # any step that was skipped
        return torch.stack([*(self.context.scale * s.sum() for s in sums), generator_norm, critic_norm, nonfinite])

    def _critic_steps(
        self, critic: nn.Module | None, sharp: Tensor, restored: Tensor, mixes: Tensor
    ) -> tuple[CriticTerms, Tensor, Tensor]:
        """(terms and gradient norm of the last step, sum of the norms of all); zeros without a critic."""
        norm = all_norms = torch.zeros((), device=sharp.device)
        terms = CriticTerms(*torch.zeros(3, len(sharp), device=sharp.device))
        if critic is not None and self.critic_adam is not None:
            for mix in mixes:
                self.critic_adam.zero_grad()
                terms = critic_step(critic, sharp, restored, mix, self.context)
                norm = _step(self.critic_adam)
                all_norms = all_norms + norm
        return terms, norm, all_norms

    @torch.no_grad()
    def _add_to_average(self) -> None:
        if self.average is None:
            return
        new = unwrap_ddp(self.generator)
        weight = 1 - self._settings.ema_decay
        torch._foreach_lerp_(list(self.average.parameters()), list(new.parameters()), weight)
        for old, buffer in zip(self.average.buffers(), new.buffers(), strict=True):
            old.copy_(buffer)

    def state(self) -> dict[str, Any]:
        """Everything that must survive a restart; `load` takes it back."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load(self, state: dict[str, Any]) -> None:
        """Raises KeyError or RuntimeError where the state is of another architecture."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {
            "generator": unwrap_ddp(self.generator),
            "critic": None if self.critic is None else unwrap_ddp(self.critic),
            "generator_adam": self.generator_adam,
            "critic_adam": self.critic_adam,
            "average": self.average,
        }
        return {name: part for name, part in parts.items() if part is not None}


def _adam(network: nn.Module, lr: float, adam: AdamRecipe, weight_decay: float = 0.0) -> Adam:
    # Fused Adam takes `found_inf` and `grad_scale` on the device: a step is skipped or clipped without synchronising
    # with the host.
    betas, decoupled = (adam.beta1, adam.beta2), weight_decay > 0
    return Adam(
        network.parameters(), lr, betas, weight_decay=weight_decay, decoupled_weight_decay=decoupled, fused=True
    )


def _step(adam: Adam, max_norm: float = 0.0) -> Tensor:
    """One optimiser step, skipped on the device where a gradient is not finite; returns the gradient's norm, [].

    The norm is that of the reduced gradient, equal on all ranks: they agree on skipping without communicating. A longer
    gradient than `max_norm` is scaled down to it, if that is not 0.
    """
    norm = torch.nn.utils.get_total_norm(p.grad for p in adam.param_groups[0]["params"] if p.grad is not None)
    adam.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # read by fused Adam's step
    if max_norm:
        adam.grad_scale = (norm / max_norm).clamp(min=1).float()  # type: ignore[attr-defined]  # it divides by this
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
