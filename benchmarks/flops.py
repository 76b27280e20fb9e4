"""Multiplications and additions of an update, counted from the shapes of its convolutions.

A convolution of C to C' channels with a k x k kernel and H' x W' outputs takes 2 C C' k k H' W' operations forward (for
a transposed one H' W' is the input size), the same again for the gradient of its weights, and for that of its inputs.
Everything else in these networks is below 1 % of that. tests/benchmarks/test_flops.py compares with torch's counter.

Each of the three passes reads two and writes one of inputs, weights and outputs (or their gradients): the same formulas
count the values moved, assuming no other traffic and no cache hits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d


@dataclass(frozen=True)
class Forward:
    """Counts of one forward pass: all convolutions, the first and the last."""

    all: int
    first: int
    last: int


def operations(module: Convolution, inputs: Tensor, outputs: Tensor) -> int:
    """Multiplications and additions."""
    pixels = inputs if module.transposed else outputs
    return 2 * module.weight.numel() * len(outputs) * pixels.shape[-2] * pixels.shape[-1]


def values(module: Convolution, inputs: Tensor, outputs: Tensor) -> int:
    """Values read or written."""
    return inputs.numel() + module.weight.numel() + outputs.numel()


def forward_of(
    network: nn.Module, batch_size: int, side: int, of: Callable[[Convolution, Tensor, Tensor], int] = operations
) -> Forward:
    """Counts of a forward pass over [batch_size, 3, side, side]; the network is not changed."""
    counts: list[int] = []

    def count(module: Convolution, inputs: tuple[Tensor], output: Tensor) -> None:
        counts.append(of(module, inputs[0], output))

    convolutions = [module for module in network.modules() if isinstance(module, Convolution)]
    hooks = [module.register_forward_hook(count) for module in convolutions]
    device = next(network.parameters()).device
    with torch.no_grad():
        network(torch.zeros(batch_size, 3, side, side, device=device))
    for hook in hooks:
        hook.remove()
    return Forward(sum(counts), counts[0], counts[-1])


def penalty(critic: Forward) -> int:
    """The gradient penalty, forward and backward (arXiv:1704.00028, eq. 3).

    Forward; the gradient of the pictures; back through that gradient, to the weights and to what came into each layer
    (also into the last layer, although its input is a constant); back through the forward pass as far as the gradient
    depends on it, which is below the last norm, to weights and inputs.
    """
    return 4 * critic.all + 2 * (critic.all - critic.last)


def naive(generator: Forward, critic: Forward, features: Forward, critic_updates: int) -> int:
    """Operations of an update by `Naive` of benchmarks/update.py, as the original code does it."""
    # One picture in a critic step: forward, weights, and inputs of all layers but the first.
    judged = 3 * critic.all - critic.first
    critic_step = 2 * judged + penalty(critic)
    # Includes the unused gradients of the weights of critic and features.
    through = 3 * critic.all + 4 * features.all
    return (3 * generator.all - generator.first) + critic_updates * critic_step + through


def ours(generator: Forward, critic: Forward, features: Forward, critic_updates: int) -> int:
    """Operations of an update by deblur/training/update.py with the objective wgan-gp."""
    judged = 3 * critic.all - critic.first
    critic_step = 2 * judged + penalty(critic) - critic.last  # models/convolution.py skips the constant
    through = 2 * critic.all + 3 * features.all
    return (3 * generator.all - generator.first) + critic_updates * critic_step + through
