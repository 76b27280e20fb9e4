"""The update: what it changes, what it leaves alone, and that ranks do not matter."""

import copy
import io
import itertools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from cluster.sync import Rank
from deblur.config.presets import paper
from deblur.config.recipes import AdamRecipe, CriticRecipe, DataRecipe, GeneratorRecipe, LossRecipe, Recipe
from deblur.data.plan import lanes_of
from deblur.models.build import build_critic, build_generator
from deblur.models.vgg import load_features
from deblur.training import distributed as networks
from deblur.training.distributed import distributed
from deblur.training.schedule import UpdateSettings, settings_at
from deblur.training.update import TERMS, Autocast, StepContext, Updater, critic_step, generator_step
from tests.ranks import run_ranks

CROP = 32


def small(batch_size: int = 4, **loss: object) -> Recipe:
    """The paper's losses, penalty included, on small networks; dropout off."""
    return replace(
        paper(),
        generator=GeneratorRecipe(filters=4, blocks=2, dropout=0.0),
        critic=CriticRecipe(filters=4, layers=2),
        loss=LossRecipe(features="vgg16-block1_conv1", feature_weights="random", **loss),
        data=DataRecipe(batch_size=batch_size, crop=CROP),
    )


def context_of(recipe: Recipe, num_ranks: int = 1) -> StepContext:
    return StepContext(recipe.loss, num_ranks / recipe.data.batch_size)


def updater_of(recipe: Recipe, rank: Rank, dtype: torch.dtype) -> Updater:
    torch.manual_seed(5)
    generator = distributed(build_generator(recipe).to(dtype), rank)
    critic = distributed(build_critic(recipe).to(dtype), rank) if recipe.loss.adversarial_weight else None
    loss = recipe.loss
    features = load_features(loss.features, "random", None).to(dtype) if loss.content_weight else None
    return Updater(generator, critic, features, recipe.adam, context_of(recipe, rank.num_ranks))


def batch_of(recipe: Recipe, update: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(blurred, sharp, mixes) of the whole batch."""
    draw = torch.Generator().manual_seed(100 + update)
    size, steps = recipe.data.batch_size, recipe.loss.critic_updates
    pictures = torch.rand(2, size, 3, CROP, CROP, generator=draw, dtype=torch.float64) * 2 - 1
    mixes = torch.rand(steps, size, 1, 1, 1, generator=draw, dtype=torch.float64)
    return pictures[0].to(dtype), pictures[1].to(dtype), mixes.to(dtype)


def make_updates(
    rank: Rank, recipe: Recipe, dtype: torch.dtype, count: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """(weights of both networks, gradients left by the last update, terms of each update) of one rank."""
    updater = updater_of(recipe, rank, dtype)
    lanes = list(lanes_of(rank.rank, rank.num_ranks, recipe.data.batch_size))
    terms = []
    for update in range(count):
        blurred, sharp, mixes = batch_of(recipe, update, dtype)
        terms.append(updater.update(blurred[lanes], sharp[lanes], mixes[:, lanes]))
    parameters = {f"{n}.{k}": p for n in ("generator", "critic") for k, p in getattr(updater, n).named_parameters()}
    parameters = {name.replace(".module.", "."): p for name, p in parameters.items()}
    return {n: p.detach() for n, p in parameters.items()}, {n: p.grad for n, p in parameters.items()}, terms


def idle_biases(recipe: Recipe) -> set[str]:
    """Biases that InstanceNorm takes away again: their gradient is rounding alone, which Adam divides by itself."""
    idle = set()
    for network, build in (("generator", build_generator), ("critic", build_critic)):
        modules = list(build(recipe).named_modules())
        for (name, module), (_, after) in itertools.pairwise(modules):
            if isinstance(after, nn.InstanceNorm2d) and isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                idle.add(f"{network}.{name}.bias")
    assert len(idle) == 9 + 2  # generator: first, two down, 2 x 2 in blocks, two up; critic: all but first and last
    return idle


# 6 is shared evenly by 2 and 3 ranks; 4 is not divided by 3.
EXACT = {batch: (small(batch, critic_updates=2), torch.float64, 3) for batch in (6, 4)}
ROUNDED = (small(4, critic_updates=1), torch.float32, 1)


def make_all_updates(rank: Rank) -> dict[int, tuple]:
    """Runs every case above, so that the processes start only once."""
    exact = {batch: make_updates(rank, *case) for batch, case in EXACT.items()}
    return exact | {1: make_updates(rank, *ROUNDED)}


@pytest.fixture(scope="module", params=[2, 3])
def by_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, tuple]]:
    return run_ranks(make_all_updates, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("batch_size", EXACT)
def test_any_number_of_ranks_leaves_the_weights_of_one(by_ranks: list[dict[int, tuple]], batch_size: int) -> None:
    alone, _, alone_terms = make_updates(Rank(), *EXACT[batch_size])
    idle = idle_biases(EXACT[batch_size][0])
    results = [result[batch_size] for result in by_ranks]
    for weights, gradients, _ in results:
        differences = {name: (weights[name] - alone[name]).abs().max() for name in alone}
        assert max(differences[name] for name in alone if name not in idle) < 1e-10
        assert max(gradients[name].abs().max() for name in idle) < 1e-12
        assert max(differences[name] for name in idle) < 1e-8
    means = [sum(terms) / len(results) for terms in zip(*(r[2] for r in results), strict=True)]
    for mean, expected in zip(means, alone_terms, strict=True):
        assert torch.allclose(mean, expected, rtol=1e-8)


def test_in_float32_the_whole_gradient_of_an_update_is_that_of_one_rank(by_ranks: list[dict[int, tuple]]) -> None:
    _, alone, _ = make_updates(Rank(), *ROUNDED)
    _, shared, _ = by_ranks[0][1]
    for network in ("generator", "critic"):
        expected = torch.cat([g.flatten() for name, g in alone.items() if name.startswith(network)])
        found = torch.cat([g.flatten() for name, g in shared.items() if name.startswith(network)])
        assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("num_ranks", [2])
def test_batch_norm_over_gpus_sees_the_whole_batch(tmp_path: Path, num_ranks: int) -> None:
    if torch.cuda.device_count() < num_ranks:
        pytest.skip(f"needs {num_ranks} GPUs")
    recipe = replace(
        small(4, objective="wasserstein"),
        generator=GeneratorRecipe(filters=4, blocks=2, dropout=0.0, norm="batch"),
        critic=CriticRecipe(filters=4, layers=2, norm="batch"),
    )
    alone = make_updates_on_gpu(Rank(device=torch.device("cuda:0")), recipe)
    for weights in run_ranks(make_updates_on_gpu, num_ranks, tmp_path, recipe):
        assert max((weights[name] - alone[name]).abs().max() for name in alone) < 1e-8


@pytest.mark.gpu
def test_nothing_in_an_update_waits_for_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    device, recipe = torch.device("cuda"), small()
    torch.manual_seed(5)
    features = load_features(recipe.loss.features, "random", None)
    updater = networks.build(recipe, features.to(device), Rank(device=device))
    batch = [tensor.to(device) for tensor in batch_of(recipe, 0, torch.float32)]
    updater.update(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        updater.update(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_updates_on_gpu(rank: Rank, recipe: Recipe) -> dict[str, Tensor]:
    device = torch.device("cuda", rank.rank)
    rank = replace(rank, device=device)
    torch.manual_seed(5)
    made = [build(recipe).double().to(device) for build in (build_generator, build_critic)]
    features = load_features(recipe.loss.features, "random", None).double().to(device)
    generator, critic = (distributed(network, rank) for network in made)
    updater = Updater(generator, critic, features, recipe.adam, context_of(recipe, rank.num_ranks))
    lanes = list(lanes_of(rank.rank, rank.num_ranks, recipe.data.batch_size))
    for update in range(3):
        blurred, sharp, mixes = (t.to(device) for t in batch_of(recipe, update, torch.float64))
        updater.update(blurred[lanes], sharp[lanes], mixes[:, lanes])
    return {k.removeprefix("module."): p.detach().cpu() for k, p in generator.named_parameters()}


def test_the_generator_runs_forward_once_per_update_and_the_critic_steps_as_often_as_told() -> None:
    recipe = small(critic_updates=3)
    updater = updater_of(recipe, Rank(), torch.float32)
    calls = {"generator": 0, "critic_adam": 0, "generator_adam": 0}

    def counted(name: str, original: Callable) -> Callable:
        def call(*arguments: object, **named: object) -> object:
            calls[name] += 1
            return original(*arguments, **named)

        return call

    updater.generator.forward = counted("generator", updater.generator.forward)
    updater.critic_adam.step = counted("critic_adam", updater.critic_adam.step)
    updater.generator_adam.step = counted("generator_adam", updater.generator_adam.step)
    updater.update(*batch_of(recipe, 0, torch.float32))
    assert calls == {"generator": 1, "critic_adam": 3, "generator_adam": 1}


def parts(recipe: Recipe) -> tuple[nn.Module, nn.Module, nn.Module, Tensor, Tensor, Tensor]:
    updater = updater_of(recipe, Rank(), torch.float32)
    return (updater.generator, updater.critic, updater.features, *batch_of(recipe, 0, torch.float32))


def test_a_critic_step_gives_gradients_to_the_critic_alone() -> None:
    recipe = small()
    generator, critic, _, blurred, sharp, mixes = parts(recipe)
    critic_step(critic, sharp, generator(blurred).detach(), mixes[0], context_of(recipe))
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for p in generator.parameters())


def test_the_generator_step_gives_gradients_to_the_generator_alone() -> None:
    recipe = small()
    generator, critic, features, blurred, sharp, _ = parts(recipe)
    generator_step(critic, features, sharp, generator(blurred), context_of(recipe))
    assert all(p.grad is not None for p in generator.parameters())
    assert all(p.grad is None for p in [*critic.parameters(), *features.parameters()])
    assert all(p.requires_grad for p in critic.parameters()), "the next critic step needs them again"


def test_the_generators_gradient_is_that_of_the_written_formula() -> None:
    """100 x content + 0.5 x adversarial + 2 x pixel, by autograd of the sentence itself."""
    recipe = small(pixel_weight=2.0, adversarial_weight=0.5)
    generator, critic, features, blurred, sharp, _ = (part.double() for part in parts(recipe))
    restored = generator(blurred)
    content = ((features(restored) - features(sharp)) ** 2).mean()
    loss = 100 * content - 0.5 * critic(restored).mean() + 2 * (restored - sharp).abs().mean()
    expected = torch.autograd.grad(loss, list(generator.parameters()))
    generator_step(critic, features, sharp, generator(blurred), context_of(recipe))
    for parameter, gradient in zip(generator.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_an_update_moves_both_networks_and_only_by_their_own_steps() -> None:
    recipe = small()
    updater = updater_of(recipe, Rank(), torch.float32)
    updater.set(UpdateSettings(0.0, 1e-3))
    before = {n: [p.detach().clone() for p in getattr(updater, n).parameters()] for n in ("generator", "critic")}
    updater.update(*batch_of(recipe, 0, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(before["generator"], updater.generator.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before["critic"], updater.critic.parameters(), strict=True))


def test_without_adversarial_weight_there_is_no_critic_and_the_generator_learns_as_adamw_would() -> None:
    """Against torch's plain AdamW, clip_grad_norm_ and a moving average by hand; weight 0 leaves VGG out, too."""
    recipe = small(adversarial_weight=0.0, content_weight=0.0, pixel_weight=1.0, frequency_weight=0.1)
    recipe = replace(recipe, adam=AdamRecipe(weight_decay=0.1, gradient_clip=0.05, ema_halflife_images=8))
    torch.manual_seed(5)
    generator = build_generator(recipe).double()
    average = [p.detach().clone() for p in generator.parameters()]
    adamw = torch.optim.AdamW(generator.parameters(), 1e-4, (0.5, 0.999), weight_decay=0.1)
    updater = updater_of(recipe, Rank(), torch.float64)
    assert updater.critic is updater.features is None
    for update in range(3):
        settings = settings_at(recipe, 400 * update, 2000)
        blurred, sharp, mixes = batch_of(recipe, update, torch.float64)
        updater.set(settings)
        updater.update(blurred, sharp, mixes)
        adamw.param_groups[0]["lr"] = settings.generator_lr
        adamw.zero_grad()
        error = generator(blurred) - sharp
        (error.abs().mean() + 0.1 * torch.view_as_real(torch.fft.fft2(error)).abs().mean()).backward()
        assert nn.utils.clip_grad_norm_(generator.parameters(), 0.05) > 0.05, "or clipping is not tested"
        adamw.step()
        decay = [0.0, 0.5**0.5, 0.5**0.5][update]  # batches of 4, a half-life of 8
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, generator.parameters(), strict=True)]
    for found, expected in (
        (updater.generator.parameters(), generator.parameters()),
        (updater.result.parameters(), average),
    ):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_until_it_joins_the_critic_neither_runs_nor_changes_the_generator() -> None:
    plain = small(adversarial_weight=0.0, content_weight=0.0, pixel_weight=1.0)
    later = small(adversarial_from=12, pixel_weight=1.0)
    alone, joined = (updater_of(recipe, Rank(), torch.float32) for recipe in (plain, later))
    before = [p.detach().clone() for p in joined.critic.parameters()]
    for update in range(4):
        joined.set(settings_at(later, 4 * update, 40))
        alone.set(settings_at(plain, 4 * update, 40))
        with mock.patch.object(joined.critic, "forward", wraps=joined.critic.forward) as forward:
            terms = joined.update(*batch_of(later, update, torch.float32))
        alone.update(*batch_of(plain, update, torch.float32))
        same = all(map(torch.equal, joined.generator.parameters(), alone.generator.parameters()))
        untouched = all(map(torch.equal, joined.critic.parameters(), before))
        assert (same, untouched, not forward.called) == ((update < 3,) * 3)
        assert (terms[TERMS.index("penalty")] == 0) == (update < 3)


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_told() -> None:
    recipe = small()
    updater = updater_of(recipe, Rank(), torch.float32)
    blurred, sharp, mixes = batch_of(recipe, 0, torch.float32)
    updater.update(blurred, sharp, mixes)
    before = [p.detach().clone() for p in [*updater.generator.parameters(), *updater.critic.parameters()]]
    blurred[1, 0, 3, 3] = float("nan")
    terms = updater.update(blurred, sharp, mixes)
    assert terms[TERMS.index("nonfinite")] == 1
    after = [*updater.generator.parameters(), *updater.critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    blurred[1, 0, 3, 3] = 0
    terms = updater.update(blurred, sharp, mixes)
    assert terms[TERMS.index("nonfinite")] == 0
    assert all(torch.isfinite(p).all() for p in after)


def test_a_loaded_state_goes_on_as_the_saved_one() -> None:
    recipe = small()
    first, second = (updater_of(recipe, Rank(), torch.float32) for _ in range(2))
    first.update(*batch_of(recipe, 0, torch.float32))
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.load(torch.load(file, weights_only=True))
    for updater in (first, second):
        updater.update(*batch_of(recipe, 1, torch.float32))
    pairs = zip(first.generator.parameters(), second.generator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def plain(critic: nn.Module) -> nn.Module:
    """The same critic of torch's own layers, in float64."""
    stages: list[nn.Module] = []
    for module in critic.stages:
        if not isinstance(module, nn.Conv2d):
            stages.append(copy.deepcopy(module))
            continue
        made = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
        made.load_state_dict(module.state_dict())
        stages.append(made)
    return nn.Sequential(*stages).double()


def written_critic_gradient(recipe: Recipe, critic: nn.Module, *pictures: Tensor) -> Tensor:
    """The gradient of the sentence itself, picture by picture, in float64: [all weights]."""
    critic, loss, size = plain(critic), torch.zeros(()).double(), len(pictures[0])
    for sharp, restored, mix in zip(*(p.double().split(1) for p in pictures), strict=True):
        between = (mix * sharp + (1 - mix) * restored).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).mean(), between, create_graph=True)
        penalty = (slope.square().sum().sqrt() - 1) ** 2
        loss = loss + (critic(restored).mean() - critic(sharp).mean() + 10 * penalty) / size
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(critic.parameters()))])


def critic_gradient(recipe: Recipe, critic: nn.Module, *pictures: Tensor, **autocast: Autocast) -> Tensor:
    """What a critic step leaves in the weights: [all weights]."""
    critic_step(critic, *pictures, replace(context_of(recipe), **autocast))
    return torch.cat([parameter.grad.flatten() for parameter in critic.parameters()])


def test_the_critics_gradient_is_that_of_the_written_formula() -> None:
    recipe = small()
    generator, critic, _, blurred, sharp, mixes = (part.double() for part in parts(recipe))
    pictures = sharp, generator(blurred).detach(), mixes[0]
    expected = written_critic_gradient(recipe, critic, *pictures)
    assert torch.allclose(critic_gradient(recipe, critic, *pictures), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("updates", [0, 5])
def test_in_bfloat16_gradients_point_where_those_of_float64_do(updates: int) -> None:
    """A critic with the paper's penalty, fresh and after some updates.

    Processors that multiply bfloat16 natively come within 0.1 of the length; those that emulate it within 0.15.
    """
    recipe = replace(small(), critic=CriticRecipe(filters=16), adam=AdamRecipe(critic_lr=1e-3))
    updater = updater_of(recipe, Rank(), torch.float32)
    updater.context = replace(updater.context, autocast=bfloat16)
    for update in range(updates):
        updater.update(*batch_of(recipe, update, torch.float32))
    blurred, sharp, mixes = batch_of(recipe, updates, torch.float32)
    pictures = sharp, updater.generator(blurred).detach(), mixes[0]
    expected = written_critic_gradient(recipe, updater.critic, *pictures)
    updater.critic.zero_grad()
    found = critic_gradient(recipe, updater.critic, *pictures, autocast=bfloat16).double()
    assert (found - expected).norm() < 0.2 * expected.norm()
    assert torch.cosine_similarity(found, expected, dim=0) > 0.98


def test_auto_is_bfloat16_where_the_processor_multiplies_it() -> None:
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    assert networks.in_bfloat16(Recipe(), torch.device("cpu")) == bool(flags & {"avx512_bf16", "amx_bf16"})
    expected = "bfloat16, channels last, on cpu" if flags & {"avx512_bf16", "amx_bf16"} else "float32, on cpu"
    assert networks.computation(Recipe(), torch.device("cpu")) == expected


def bfloat16() -> AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_in_bfloat16_the_weights_stay_float32_and_the_terms_are_near() -> None:
    recipe = small()
    rough, exact = (updater_of(recipe, Rank(), torch.float32) for _ in range(2))
    rough.context = replace(rough.context, autocast=bfloat16)
    batch = batch_of(recipe, 0, torch.float32)
    rough_terms, exact_terms = rough.update(*batch), exact.update(*batch)
    assert all(p.dtype is torch.float32 for p in [*rough.generator.parameters(), *rough.critic.parameters()])
    assert torch.allclose(rough_terms[:4], exact_terms[:4], rtol=0.1)
    assert not torch.equal(rough_terms, exact_terms), "autocast must have been entered"


def test_sharp_and_restored_pass_the_critic_together_but_where_its_norm_is_of_the_batch() -> None:
    for norm, expected in (("instance", [8]), ("batch", [4, 4])):
        recipe = replace(small(objective="wasserstein"), critic=CriticRecipe(filters=4, layers=2, norm=norm))
        generator, critic, _, blurred, sharp, mixes = parts(recipe)
        seen: list[int] = []
        critic.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
        restored = generator(blurred).detach()
        terms = critic_step(critic, sharp, restored, mixes[0], context_of(recipe))
        assert seen == expected
        assert torch.allclose(terms.restored_score, critic(restored).flatten(1).mean(1), atol=1e-6)
