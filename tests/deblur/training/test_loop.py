"""The loop: with any number of ranks, killed at any moment, and without Ray."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from cluster.errors import Diverged, InputError
from cluster.storage import open_store
from cluster.sync import Intervals, Rank, Sync
from deblur.config.presets import paper
from deblur.config.recipes import CriticRecipe, DataRecipe, GeneratorRecipe, LossRecipe, Recipe
from deblur.data.index import read_index
from deblur.data.loader import Batch, batches
from deblur.training import job, loop
from deblur.training.config import RunConfig
from deblur.training.distributed import build
from deblur.training.loop import plan_of, total_images
from deblur.training.metrics import run_metrics
from deblur.training.run import Origin, ReadOnlyRun, Run
from deblur.training.settings import TrainSettings
from tests.datasets import write_dataset
from tests.ranks import run_ranks, start_ranks

BATCH, SAMPLES, UPDATES = 4, 43, 30  # 10 updates and 3 samples left over per epoch, 3 epochs
RECIPE = replace(
    paper(),
    precision="float32",
    generator=GeneratorRecipe(filters=4, blocks=1, dropout=0.5),
    critic=CriticRecipe(filters=4, layers=2),
    loss=LossRecipe(critic_updates=2, features="vgg16-block1_conv1", feature_weights="random"),
    data=DataRecipe(batch_size=BATCH, crop=24, images=BATCH * UPDATES),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(open_store(folder), train=SAMPLES)
    return str(folder)


def train_rank(rank: Rank, data: str, run: str, recipe: Recipe = RECIPE) -> bool:
    """One rank, which writes down every position that it consumes."""
    log = Path(f"{run}.consumed")

    def recorded(*arguments: object) -> Generator[Batch, None, None]:
        images_seen = arguments[4]
        for batch in batches(*arguments):
            for position in batch.positions:
                with log.open("a") as file:  # one write per line: ranks share it
                    file.write(json.dumps([images_seen, batch.epoch, position]) + "\n")
            images_seen += BATCH
            yield batch

    folder, _, name = run.rpartition("/")
    config = RunConfig(
        recipe=recipe,
        data=data,
        runs=folder,
        name=name,
        total_images=total_images(recipe, plan_of(recipe, read_index(open_store(data)))),
        intervals=Intervals(validate_images=64, report_s=0, checkpoint_s=0, sync_s=0),
    )
    files = Run(run) if rank.rank == 0 else ReadOnlyRun(run)
    with mock.patch.object(loop, "batches", recorded):
        return loop.fit(config, rank, Sync(), files, run_metrics(name, str(rank.rank)))


def final_generator(run: str) -> bytes:
    checkpoints = Run(run).checkpoints
    newest = checkpoints.list()[-1]
    assert newest.images_seen == BATCH * UPDATES
    return checkpoints.load_part(newest, "generator.safetensors")


def consumed(run: str) -> list[tuple[int, int, int]]:
    """(images_seen before the update, epoch, position), in the order of the file."""
    return [tuple(json.loads(line)) for line in Path(f"{run}.consumed").read_text().splitlines()]


def train_killed(
    folder: Path, data: str, run: str, num_ranks: int, recipe: Recipe = RECIPE, updates: int = 11
) -> tuple[int, int]:
    """Trains until somewhere behind an update and kills all ranks; (images committed, lines consumed)."""
    started = start_ranks(train_rank, num_ranks, folder, data, run, recipe)
    while not any(int(path.parent.name) >= updates * BATCH for path in Path(run).glob("checkpoints/*/manifest.json")):
        assert all(process.is_alive() for process in started.processes)
        time.sleep(0.002)
    for process in started.processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in started.processes:
        process.join()
    reached = Run(run).images_seen()
    assert updates * BATCH <= reached < BATCH * UPDATES, "killed in the middle, after a checkpoint"
    return reached, len(consumed(run))


def committed_work(run: str, reached: int, before_kill: int) -> list[tuple[int, int]]:
    """(epoch, position) that checkpoints vouch for: all before the kill up to the last one, and all after it."""
    lines = consumed(run)
    assert min(images for images, _, _ in lines[before_kill:]) == reached
    work = [c for c in lines[:before_kill] if c[0] < reached]
    work += [c for c in lines[before_kill:] if c[0] < BATCH * UPDATES]
    return sorted((epoch, position) for _, epoch, position in work)


PLANNED = [(epoch, position) for epoch in range(UPDATES // 10) for position in range(10 * BATCH)]


# Four ranks are the hard case: DDP's buckets then change the order of sums.
@pytest.mark.parametrize("num_ranks", [*(pytest.param(n, marks=pytest.mark.soak) for n in (1, 2)), 4])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, data: str, num_ranks: int) -> None:
    straight, killed = str(tmp_path / "straight"), str(tmp_path / "killed")
    run_ranks(train_rank, num_ranks, tmp_path / "a", data, straight)
    reached, before_kill = train_killed(tmp_path / "b", data, killed, num_ranks)
    run_ranks(train_rank, num_ranks, tmp_path / "c", data, killed)
    assert final_generator(killed) == final_generator(straight)
    assert committed_work(killed, reached, before_kill) == PLANNED


def test_moving_average_and_a_critic_that_joins_later_resume_to_the_same_bits(tmp_path: Path, data: str) -> None:
    """Killed before and after the critic joins at 16 updates."""
    loss = replace(RECIPE.loss, pixel_weight=1.0, adversarial_from=16 * BATCH)
    adam = replace(RECIPE.adam, ema_halflife_images=20, warmup_images=30, lr_decay="cosine", gradient_clip=0.1)
    recipe = replace(RECIPE, loss=loss, adam=adam)
    straight, killed = str(tmp_path / "straight"), str(tmp_path / "killed")
    run_ranks(train_rank, 2, tmp_path / "a", data, straight, recipe)
    for number, updates in enumerate((11, 19)):
        train_killed(tmp_path / f"b{number}", data, killed, 2, recipe, updates)
    run_ranks(train_rank, 2, tmp_path / "c", data, killed, recipe)
    assert final_generator(killed) == final_generator(straight)
    state = torch.load(BytesIO(Run(straight).checkpoints.newest_part("state.pt")), weights_only=True)["updater"]
    assert not torch.equal(state["average"]["last.1.weight"], state["generator"]["last.1.weight"])
    assert torch.equal(
        safetensors.torch.load(final_generator(straight))["last.1.weight"], state["average"]["last.1.weight"]
    ), "the average is what is exported"


def test_a_run_starts_from_the_generator_of_another(tmp_path: Path, data: str) -> None:
    first = str(tmp_path / "first")
    train_rank(Rank(), data, first, replace(RECIPE, data=replace(RECIPE.data, images=8)))
    settings = TrainSettings(
        data=data,
        runs=str(tmp_path),
        run="second",
        init_from=first,
        recipe=replace(RECIPE, generator=GeneratorRecipe()),
    )
    config = job.prepare(settings).config
    assert config.recipe.generator == RECIPE.generator, "the architecture is that of the file"
    updater = build(config.recipe, None, Rank(), config.load_initial_weights())
    expected = safetensors.torch.load(Run(first).checkpoints.newest_part("generator.safetensors"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in updater.generator.state_dict().items())


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), pytest.param(2, 4, marks=pytest.mark.soak)])
def test_a_killed_run_resumes_with_another_world_size_and_sees_each_sample_once(
    tmp_path: Path, data: str, before: int, after: int
) -> None:
    run = str(tmp_path / "run")
    reached, before_kill = train_killed(tmp_path / "a", data, run, before)
    run_ranks(train_rank, after, tmp_path / "b", data, run)
    assert final_generator(run)
    assert committed_work(run, reached, before_kill) == PLANNED


def preempted_rank(rank: Rank, data: str, run: str, seconds_to_preemption: list[float | None]) -> tuple[bool, int]:
    """Trains under a preemption notice with these deadlines; whether the end was reached, and updates begun."""
    notices = iter(seconds_to_preemption)
    with mock.patch(
        f"{__name__}.Sync", partial(Sync, seconds_to_preemption=lambda: next(notices, seconds_to_preemption[-1]))
    ):
        done = train_rank(rank, data, run)
    return done, max(images for images, _, _ in consumed(run)) // BATCH


def test_preempted_ranks_stop_with_a_checkpoint_and_lose_nothing(tmp_path: Path, data: str) -> None:
    run = str(tmp_path / "run")
    notices = [None] * 6 + [60.0] * 5 + [4.0]
    for done, last_update in run_ranks(preempted_rank, 2, tmp_path / "a", data, run, notices):
        assert not done
        assert last_update == 11, "the updates of all sync points but no more"
    assert Run(run).images_seen() == 12 * BATCH
    run_ranks(train_rank, 2, tmp_path / "b", data, run)
    assert sorted((e, p) for i, e, p in consumed(run) if i < BATCH * UPDATES) == PLANNED, "without any repetition"


def test_a_finished_run_is_left_alone(tmp_path: Path, data: str) -> None:
    recipe = replace(RECIPE, data=replace(RECIPE.data, images=8))
    run = str(tmp_path / "run")
    train_rank(Rank(), data, run, recipe)
    before = {path: path.stat().st_mtime_ns for path in Path(run).rglob("*") if path.is_file()}
    train_rank(Rank(), data, run, recipe)
    assert {path: path.stat().st_mtime_ns for path in Path(run).rglob("*") if path.is_file()} == before


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_finished_again(tmp_path: Path, data: str) -> None:
    recipe = replace(RECIPE, data=replace(RECIPE.data, images=16))
    run = Run(str(tmp_path / "run"))
    train_rank(Rank(), data, run.url, recipe)
    assert run.is_finished(16)
    whole = run.store.get("checkpoints/000000000016/generator.safetensors")
    run.store.put("checkpoints/000000000016/state.pt", b"damaged")
    assert not run.is_finished(16)
    train_rank(Rank(), data, run.url, recipe)
    assert run.is_finished(16)
    assert run.store.get("checkpoints/000000000016/generator.safetensors") == whole


def test_a_run_leaves_metrics_samples_and_a_validated_checkpoint(tmp_path: Path, data: str) -> None:
    recipe = replace(RECIPE, data=replace(RECIPE.data, images=68))
    run = Run(str(tmp_path / "run"))
    train_rank(Rank(), data, run.url, recipe)
    lines = run.read_metrics()
    assert [line["images_seen"] for line in lines] == list(range(4, 69, 4))
    validated = [line["images_seen"] for line in lines if "validation_psnr" in line]
    assert validated == [64, 68]
    assert all(torch.isfinite(torch.tensor(line["content"])) for line in lines)
    assert run.store.list("samples/") == ["samples/000000000064.png", "samples/000000000068.png"]
    newest = run.checkpoints.list()[-1]
    assert newest.score == pytest.approx(lines[-1]["validation_psnr"])
    assert set(newest.files) == {"state.pt", "generator.safetensors", "recipe.json"}


def test_one_rank_trains_where_ray_cannot_be_imported(tmp_path: Path, data: str) -> None:
    script = f"""
        import sys
        sys.modules["ray"] = None  # import ray fails
        from dataclasses import replace
        from cluster.sync import Rank
        from tests.deblur.training.test_loop import RECIPE, train_rank
        train_rank(Rank(), {data!r}, {str(tmp_path / "run")!r}, replace(RECIPE, data=replace(RECIPE.data, images=8)))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert Run(str(tmp_path / "run")).checkpoints.list()[-1].images_seen == 8


def test_several_updates_without_finite_gradients_stop_the_run(tmp_path: Path, data: str) -> None:
    huge = replace(RECIPE, loss=replace(RECIPE.loss, content_weight=float(2**127)))
    with pytest.raises(Diverged, match=r"last 5 updates were not finite; there is no checkpoint; lower the learning"):
        train_rank(Rank(), data, str(tmp_path / "run"), huge)


def poisoned_rank(rank: Rank, data: str, run: str, updates: range) -> str:
    """Trains with pictures that are not finite, on the last rank alone, in the updates of a range."""
    real, done = loop._to_device, itertools.count()

    def poisoned(*arguments: object) -> tuple[torch.Tensor, ...]:
        blurred, sharp, mixes = real(*arguments)
        bad = rank.rank == rank.num_ranks - 1 and next(done) in updates
        return blurred * float("nan") if bad else blurred, sharp, mixes

    with mock.patch.object(loop, "_to_device", poisoned):
        try:
            train_rank(rank, data, run)
        except Diverged as error:
            return str(error)
    return ""


def test_numbers_that_are_not_finite_on_one_rank_are_skipped_and_counted_by_all(tmp_path: Path, data: str) -> None:
    run = str(tmp_path / "run")
    assert run_ranks(poisoned_rank, 2, tmp_path / "a", data, run, range(9, 13)) == ["", ""]
    lines = Run(run).read_metrics()
    assert [line["images_seen"] // BATCH for line in lines if line["nonfinite"]] == [10, 11, 12, 13]
    assert final_generator(run)


def test_several_in_a_row_on_one_rank_stop_all_ranks_and_name_the_last_good_checkpoint(
    tmp_path: Path, data: str
) -> None:
    run = str(tmp_path / "run")
    errors = run_ranks(poisoned_rank, 2, tmp_path / "a", data, run, range(9, 99))
    assert all(f"the last good checkpoint is {run}/checkpoints/{9 * BATCH:012d}" in error for error in errors)
    assert Run(run).images_seen() == 9 * BATCH


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, data: str) -> None:
    run = str(tmp_path / "run")
    train_rank(Rank(), data, run, replace(RECIPE, data=replace(RECIPE.data, images=8)))
    other = replace(RECIPE, generator=replace(RECIPE.generator, filters=8))
    with pytest.raises(InputError, match=r"other networks.*choose another --run"):
        train_rank(Rank(), data, run, other)


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    run, origin = Run(str(tmp_path / "run")), Origin(dataset="d", features="f")
    run.check(RECIPE, origin)
    run.begin(RECIPE, origin)
    run.check(RECIPE, origin)
    changed = replace(RECIPE, data=replace(RECIPE.data, batch_size=8))
    with pytest.raises(InputError, match=r"data\.batch_size: 4 -> 8.*--allow-recipe-change"):
        run.check(changed, origin)
    with pytest.raises(InputError, match=r"dataset: d -> e"):
        run.check(RECIPE, Origin(dataset="e", features="f"))


def test_a_crop_larger_than_the_smallest_picture_is_refused_before_work(data: str) -> None:
    index = read_index(open_store(data))
    with pytest.raises(InputError, match=r"--crop 64 .*56x48.*--crop 48"):
        plan_of(replace(RECIPE, data=replace(RECIPE.data, crop=64)), index)


def test_the_length_of_a_run_is_whole_updates(data: str) -> None:
    plan = plan_of(RECIPE, read_index(open_store(data)))
    assert total_images(replace(RECIPE, data=replace(RECIPE.data, images=9)), plan) == 12
    assert total_images(replace(RECIPE, data=replace(RECIPE.data, images=None, epochs=3)), plan) == 3 * 10 * BATCH
