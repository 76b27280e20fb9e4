"""Multiplications and additions of an update, counted from the shapes of its convolutions.

A convolution of C to C' channels with a k x k kernel and H' x W' outputs takes 2 C C' k k H' W' operations forward (of
a transposed one H' W' are the inputs), as many again for the gradient of its weights, and as many for that of its
inputs. All else in these networks is less than a hundredth of that. tests/benchmarks/test_flops.py compares with
torch's counter.

Each of the three reads two and writes one of its inputs, its weights and its outputs (or their gradients): the values
that it moves, if nothing else has to be moved and nothing stays in a cache, are counted by the same formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Convolution = nn.Conv2d | nn.ConvTranspose2d


@dataclass(frozen=True)
class Forward:
    """Of one forward pass: all convolutions, and of these the first and the last."""

    all: int
    first: int
    last: int


def operations(module: Convolution, inputs: Tensor, outputs: Tensor) -> int:
    """Multiplications and additions."""
    pixels = inputs if module.transposed else outputs
    return 2 * module.weight.numel() * len(outputs) * pixels.shape[-2] * pixels.shape[-1]


def values(module: Convolution, inputs: Tensor, outputs: Tensor) -> int:
    """Numbers that are read or written."""
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
    (into the last came a constant, but torch asks for it, too); back through the forward pass as far as the gradient
    depends on it, which is below the last norm, to weights and inputs.
    """
    return 4 * critic.all + 2 * (critic.all - critic.last)


def naive(generator: Forward, critic: Forward, features: Forward, critic_updates: int) -> int:
    """An update as the original code makes it: benchmarks/update.py, `Naive`."""
    judged = (
        3 * critic.all - critic.first
    )  # one picture in a critic step: forward, weights, inputs of all but the first
    critic_step = 2 * judged + penalty(critic)
    # With gradients of the weights of critic and features, which nobody uses.
    through = 3 * critic.all + 4 * features.all
    return (3 * generator.all - generator.first) + critic_updates * critic_step + through


def ours(generator: Forward, critic: Forward, features: Forward, critic_updates: int) -> int:
    """An update as deblur/training/update.py makes it with the objective wgan-gp."""
    judged = 3 * critic.all - critic.first
    critic_step = 2 * judged + penalty(critic) - critic.last  # models/convolution.py: nobody asks for that constant
    through = 2 * critic.all + 3 * features.all
    return (3 * generator.all - generator.first) + critic_updates * critic_step + through
