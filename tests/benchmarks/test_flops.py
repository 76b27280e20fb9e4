"""Operations computed from shapes, compared with torch's counter."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import flops
from benchmarks.update import Settings, batch_of, counted, recipe_of, updater_of, updates

CPU = torch.device("cpu")


class Counter(TorchDispatchMode):
    """torch's formulas for each operation; its FlopCounterMode also follows modules, which autograd.grad breaks."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=output)
        return output


def done_by(work: Callable[[], None]) -> int:
    with Counter() as counter:
        work()
    return counter.total


@pytest.mark.parametrize("batch_size", [1, 2])
def test_operations_of_an_update_match_torchs_counter(batch_size: int) -> None:
    recipe = recipe_of(Settings(image_size=32, batch_size=batch_size))
    small = {"generator": replace(recipe.generator, filters=8), "critic": replace(recipe.critic, filters=8)}
    recipe = replace(recipe, **small)
    done = {kind: done_by(update) for kind, update in updates(recipe, CPU).items()}
    assert done["ours"] == counted(recipe, CPU)["ours"]
    # Where a stride of 2 leaves a rest, torch makes 5x5 gradients of weights in the penalty and cuts them to 4x4.
    assert done["naive"] == pytest.approx(counted(recipe, CPU)["naive"], rel=0.01)


def test_the_original_update_takes_about_nine_tenths_of_a_teraflop() -> None:
    """By hand, of one picture of 256x256: models/networks.py with 64 filters, nine blocks, a padding of 2."""

    def convolution(before: int, after: int, kernel: int, side: int) -> int:
        return 2 * before * after * kernel**2 * side**2

    blocks = 18 * convolution(256, 256, 3, 64)
    around = 2 * (convolution(3, 64, 7, 256) + convolution(64, 128, 3, 128) + convolution(128, 256, 3, 64))
    generator = flops.Forward(blocks + around, convolution(3, 64, 7, 256), 0)
    layers = [(3, 64, 129), (64, 128, 65), (128, 256, 33), (256, 512, 34), (512, 1, 35)]
    judged = [convolution(before, after, 4, side) for before, after, side in layers]
    critic = flops.Forward(sum(judged), judged[0], judged[-1])
    vgg = [(3, 64, 256), (64, 64, 256), (64, 128, 128), (128, 128, 128), (128, 256, 64), (256, 256, 64), (256, 256, 64)]
    features = flops.Forward(sum(convolution(before, after, 3, side) for before, after, side in vgg), 0, 0)
    by_hand = flops.naive(generator, critic, features, critic_updates=5)
    found = counted(recipe_of(Settings(image_size=256, batch_size=1)), CPU)["naive"]
    assert found == pytest.approx(by_hand, rel=0.05)
    assert found == pytest.approx(0.9e12, rel=0.1)


def test_values_moved_are_inputs_weights_and_outputs() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ConvTranspose2d(8, 5, 3))
    first = 2 * 3 * 16 * 16 + 8 * 3 * 16 + 2 * 8 * 8 * 8
    last = 2 * 8 * 8 * 8 + 8 * 5 * 9 + 2 * 5 * 10 * 10
    assert flops.forward_of(network, 2, 16, flops.values) == flops.Forward(first + last, first, last)


def test_counting_does_not_change_the_networks() -> None:
    recipe = recipe_of(Settings(image_size=32, batch_size=1))
    updater = updater_of(recipe, CPU)
    before = [p.clone() for p in updater.critic.parameters()]
    flops.forward_of(updater.critic, 1, 32)
    assert all(torch.equal(a, b) for a, b in zip(before, updater.critic.parameters(), strict=True))
    assert not any(m._forward_hooks for m in updater.critic.modules())
    assert updater.update(*batch_of(recipe, CPU)).isfinite().all()
