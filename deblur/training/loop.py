"""The training loop: from a resolved config to a finished run, on one of any number of ranks. Knows no Ray."""

from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import Diverged, InputError
from cluster.exporter import Metrics
from cluster.sync import Rank, StepScheduler, Sync
from deblur.config import randomness
from deblur.config.recipes import Recipe
from deblur.data.index import Index
from deblur.data.loader import BadSamples, Batch, batches
from deblur.data.plan import Plan, lanes_of
from deblur.models.pixels import from_uint8
from deblur.training.config import RunConfig
from deblur.training.distributed import build, computation
from deblur.training.meter import Counters, Meter, progress
from deblur.training.run import Run
from deblur.training.schedule import settings_at
from deblur.training.state import load, save, warm_up
from deblur.training.validation import NAMES, Validator

MAX_NONFINITE_IN_A_ROW = 5
# What the driver receives after a validation; Ray prints all of it.
REPORTED = ("images_seen", "images_per_second", "ranks", "threads_per_rank", *NAMES)


def plan_of(recipe: Recipe, index: Index) -> Plan:
    """The order in which a recipe reads a dataset's training split. Raises InputError if they do not fit."""
    train = index.splits["train"]
    if min(train.smallest) < recipe.data.crop:
        height, width = train.smallest
        raise InputError(
            f"--crop {recipe.data.crop} is larger than the smallest training picture ({width}x{height}); choose "
            f"--crop {min(train.smallest)} or less"
        )
    sizes = tuple(shard.num_samples for shard in train.shards)
    return Plan(shard_sizes=sizes, batch_size=recipe.data.batch_size, seed=recipe.seed)


def total_images(recipe: Recipe, plan: Plan) -> int:
    """Length of the run, in images of whole updates."""
    if recipe.data.images is not None:
        return -(-recipe.data.images // plan.batch_size) * plan.batch_size
    return recipe.data.epochs * plan.updates_per_epoch * plan.batch_size


def fit(config: RunConfig, rank: Rank, sync: Sync, run: Run, metrics: Metrics) -> bool:
    """Trains to the end of the recipe, from the run's newest checkpoint if there is one.

    Returns whether the end was reached: the ranks stop before it, with a checkpoint, when a node is preempted or when
    the cluster can scale up. Raises InputError for what the user can fix, and Diverged after several updates in a row
    whose gradients were not finite.
    """
    recipe, total = config.recipe, config.total_images
    dataset = config.open_dataset()
    plan = plan_of(recipe, dataset.index)
    lanes = lanes_of(rank.rank, rank.num_ranks, plan.batch_size)

    # Build, warm up, resume.
    updater = build(recipe, config.load_features(rank.device), rank, config.load_initial_weights())
    fresh = warm_up(updater, recipe, len(lanes), rank.device)
    images_seen = start = load(updater, fresh, run, sync, rank)
    if images_seen >= total:
        run.log(f"already finished at {images_seen:,} images; nothing to do")
        return True
    run.resume(images_seen, plan.batch_size, computation(recipe, rank.device))

    bad = BadSamples(config.max_bad_share, plan.num_samples)
    scheduler = StepScheduler(config.intervals, images_seen=start, total_images=total, batch_size=plan.batch_size)
    validator = Validator(dataset, rank, sync, config.threads)
    meter = Meter(rank, images_seen, len(lanes), Counters(dataset.store.traffic, bad), run.state, metrics)
    updates_to_sync = 1
    with closing(batches(dataset, plan, lanes, recipe.data, images_seen, config.threads, bad)) as stream:
        for batch in meter.timed(stream):
            # One update of both networks.
            updater.set(settings_at(recipe, images_seen, total))
            torch.manual_seed(randomness.dropout_seed(recipe.seed, images_seen, rank.rank))
            meter.add(updater.update(*_to_device(batch, recipe, rank.device), meter.on_phase_end))
            images_seen += plan.batch_size
            updates_to_sync -= 1
            if updates_to_sync:
                continue

            # Sync point: rank 0 decides, every rank does the same.
            skipped = meter.nonfinite_in_a_row()
            if skipped >= MAX_NONFINITE_IN_A_ROW:
                raise Diverged(sync.broadcast_from_rank0(_divergence, run, skipped))
            step = sync.broadcast_from_rank0(scheduler.decide, images_seen, run.cluster_state(sync))
            updates_to_sync = step.updates_to_next_sync
            run.record_progress(images_seen, step.preemption_notice)
            scores: dict[str, float] = {}
            if step.validate:
                meter.mark("sync")
                scores = validator.scores(updater.result)
                validator.write_sample(updater.result, run, images_seen)
                meter.mark("validation")
            if step.report:
                report = meter.report(images_seen, sync, _status(config, plan, images_seen) | scores)
                bad.check(report["bad_samples"], images_seen - start)
                run.add_metrics(report)
                run.log(progress(report, total))
                if step.validate:
                    sync.report({name: report[name] for name in REPORTED if name in report})
            # Amid skipped updates there is nothing good to save, unless the ranks stop here.
            if step.checkpoint and (step.stop or not skipped):
                save(updater, recipe, images_seen, run, scores.get("validation_psnr"))
            meter.mark("sync")
            if step.restart:
                run.log(f"{step.restart}: checkpointed at {images_seen:,} images, stopping workers")
            if step.stop:
                break
    run.close()
    return images_seen >= total


def _status(config: RunConfig, plan: Plan, images_seen: int) -> dict[str, Any]:
    """What a report says beside what was measured."""
    settings = settings_at(config.recipe, images_seen, config.total_images)
    return {
        "images_wanted": config.total_images,
        "epoch": images_seen // (plan.updates_per_epoch * plan.batch_size),
        "generator_lr": settings.generator_lr,
        "critic_lr": settings.critic_lr,
        "threads_per_rank": torch.get_num_threads(),
    }


def _divergence(run: Run, skipped: int) -> str:
    run.checkpoints.wait()  # every rank waits for rank 0, so the upload ends before they do
    committed = run.checkpoints.list()
    last = (
        f"the last good checkpoint is {run.checkpoints.url(committed[-1])}" if committed else "there is no checkpoint"
    )
    return (
        f"{run.url}: the gradients of the last {skipped} updates were not finite; {last}; lower the learning rates "
        "(--allow-recipe-change) or choose --precision float32"
    )


def _to_device(batch: Batch, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(blurred, sharp, mixes) of `Updater.update`; pictures travel as bytes and become floats on the device."""
    draws = [randomness.mix(recipe.seed, batch.epoch, p, recipe.loss.critic_updates) for p in batch.positions]
    mixes = torch.from_numpy(np.stack(draws, axis=1))[:, :, None, None, None]
    blurred, sharp, mixes = (
        (t.pin_memory() if device.type == "cuda" else t).to(device, non_blocking=True)
        for t in (batch.blurred, batch.sharp, mixes)
    )
    return from_uint8(blurred), from_uint8(sharp), mixes
