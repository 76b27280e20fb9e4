"""The loop: from a recipe and a dataset to a generator, on one of any number of ranks. Knows no Ray."""

import logging
from contextlib import closing
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cluster.errors import Diverged, InputError
from cluster.exporter import Numbers
from cluster.sync import ClusterState, Intervals, Rank, Record, StepScheduler, Sync
from deblur.config import randomness
from deblur.config.recipes import Recipe
from deblur.data.dataset import Dataset
from deblur.data.loader import BadSamples, Batch, batches
from deblur.data.plan import Plan, lanes_of
from deblur.data.shards import Index
from deblur.models.pixels import from_uint8
from deblur.models.vgg import Features
from deblur.training.distributed import build
from deblur.training.metrics import Meter, numbers_of, progress
from deblur.training.run import Run
from deblur.training.schedule import lr_at
from deblur.training.state import checkpoint_parts, load, warmed_up
from deblur.training.validation import validate, write_sample

MAX_NONFINITE_IN_A_ROW = 5
# What whoever started the ranks is told at a validation; Ray prints all of it.
REPORTED = ("images_seen", "images_per_second", "ranks", "threads_per_rank")
REPORTED += ("validation_psnr", "validation_ssim", "validation_blurred_psnr", "validation_blurred_ssim")
_log = logging.getLogger(__name__)


def plan_of(recipe: Recipe, index: Index) -> Plan:
    """The order in which a recipe reads a dataset's training split. Raises InputError where they do not fit."""
    train = index.splits["train"]
    if min(train.smallest) < recipe.data.crop:
        height, width = train.smallest
        raise InputError(
            f"--crop {recipe.data.crop} is larger than the smallest training picture ({width}x{height}); choose "
            f"--crop {min(train.smallest)} or less"
        )
    sizes = tuple(len(shard.samples) for shard in train.shards)
    return Plan(shard_sizes=sizes, batch_size=recipe.data.batch_size, seed=recipe.seed)


def total_images(recipe: Recipe, plan: Plan) -> int:
    """Length of the run, in images of whole updates."""
    if recipe.data.images is not None:
        return -(-recipe.data.images // plan.batch_size) * plan.batch_size
    return recipe.data.epochs * plan.updates_per_epoch * plan.batch_size


def fit(
    recipe: Recipe,
    dataset: Dataset,
    features: Features,
    rank: Rank,
    sync: Sync,
    run: Run,
    *,
    intervals: Intervals,
    threads: int = 2,
    max_bad_share: float = 0.01,
    numbers: Numbers | None = None,
) -> bool:
    """Trains to the end of the recipe, going on from the run's newest checkpoint where there is one.

    Returns whether the end was reached: the ranks leave before it, with a checkpoint, when a node is going to be taken
    or the cluster has room for more of them. `features` on any device; `threads` decode pictures; `max_bad_share` of
    the samples may fail to decode; `numbers` are kept up to date. Raises InputError for what the user can fix, and
    Diverged after several updates in a row whose gradients were not finite.
    """
    plan = plan_of(recipe, dataset.index)
    total = total_images(recipe, plan)
    lanes = lanes_of(rank.rank, rank.num_ranks, plan.batch_size)

    # Build, warm up, resume.
    updater = build(recipe, features.to(rank.device), rank)
    fresh = warmed_up(updater, recipe, len(lanes), rank.device)
    images_seen = load(updater, fresh, run, sync, rank)
    if images_seen >= total:
        _log.info("%s: finished at %d images, nothing to do", run.url, images_seen)
        return True

    agenda = StepScheduler(intervals, images_seen=images_seen, total_images=total, batch_size=plan.batch_size)
    bad, bad_validation = BadSamples(max_bad_share, plan.num_samples), BadSamples(1, 0)
    start = images_seen
    if rank.rank == 0:
        run.resume(images_seen, plan.batch_size)
    counters, state = partial(_counters, dataset, bad), run.state if rank.rank == 0 else dict
    meter = Meter(rank, images_seen, len(lanes), counters, state, numbers or numbers_of(run.name, str(rank.rank)))
    updates_to_sync = 1
    with closing(batches(dataset, plan, lanes, recipe.data, images_seen, threads, bad)) as stream:
        for batch in meter.timed(stream):
            # One update of both networks.
            updater.set_lrs(*_rates(recipe, images_seen, total))
            torch.manual_seed(randomness.dropout_seed(recipe.seed, images_seen, rank.rank))
            meter.add(updater.update(*_to_device(batch, recipe, rank.device), meter.lap))
            images_seen += plan.batch_size
            updates_to_sync -= 1
            if updates_to_sync:
                continue

            # The meeting: rank 0 decides, all do the same.
            if (skipped := meter.nonfinite_in_a_row()) >= MAX_NONFINITE_IN_A_ROW:
                raise Diverged(sync.broadcast_from_rank0(partial(_diverged, run, skipped)))
            checkpoints = run.checkpoints
            outlook = ClusterState(
                sync.seconds_to_preemption(), checkpoints.uploads.seconds, checkpoints.uploading, sync.can_scale_up
            )
            record: Record = sync.broadcast_from_rank0(partial(agenda.decide, images_seen, outlook))
            updates_to_sync = record.updates_to_next
            if rank.rank == 0:
                run.reached(images_seen, noticed=record.notice)
            quality = {}
            if record.validate:
                meter.mark("meeting")
                quality = validate(updater.generator, dataset, rank, sync, threads, bad_validation)
                if rank.rank == 0:
                    write_sample(updater.generator, dataset, run, rank, images_seen, bad_validation)
                meter.mark("validation")
            if record.report:
                generator_lr, critic_lr = _rates(recipe, images_seen, total)
                more = {
                    "images_wanted": total,
                    "epoch": images_seen // (plan.updates_per_epoch * plan.batch_size),
                    "generator_lr": generator_lr,
                    "critic_lr": critic_lr,
                    "threads_per_rank": torch.get_num_threads(),
                }
                metrics = meter.report(images_seen, sync, more | quality)
                bad.check(metrics["bad_samples"], images_seen - start)
                if rank.rank == 0:
                    run.add_metrics(metrics)
                    print(progress(run.name, metrics, total), flush=True)
                if record.validate:
                    sync.report({name: metrics[name] for name in REPORTED if name in metrics})
            # In the middle of updates that were skipped there is nothing good to keep, unless the ranks end here.
            if record.checkpoint and rank.rank == 0 and (not skipped or record.stop or record.leave):
                run.write_metrics()
                parts = checkpoint_parts(updater, recipe, images_seen)
                checkpoints.save(images_seen, parts, quality.get("validation_psnr"))
            if record.leave and rank.rank == 0:
                print(f"{run.name}: {record.leave}; the ranks leave at {images_seen:,} images", flush=True)
            meter.mark("meeting")
            if record.stop or record.leave:
                break
    run.checkpoints.wait()
    if rank.rank == 0:
        run.note_the_rest()
    return images_seen >= total


def _counters(dataset: Dataset, bad: BadSamples) -> dict[str, int]:
    traffic = dataset.store.traffic
    return {
        "read_bytes": traffic.read_bytes,
        "storage_retries": traffic.retries,
        "resumed_reads": traffic.resumed_reads,
        "bad_samples": bad.count,
    }


def _diverged(run: Run, skipped: int) -> str:
    run.checkpoints.wait()  # all ranks wait for the first: the upload ends before they do
    committed = run.checkpoints.list()
    last = (
        f"the last good checkpoint is {run.checkpoints.url(committed[-1])}" if committed else "there is no checkpoint"
    )
    return (
        f"{run.url}: the gradients of the last {skipped} updates were not finite; {last}; lower the learning rates "
        "(--allow-recipe-change) or choose --precision float32"
    )


def _rates(recipe: Recipe, images_seen: int, total: int) -> tuple[float, float]:
    adam = recipe.adam
    return (
        lr_at(adam.generator_lr, images_seen, total, adam.lr_decay_start),
        lr_at(adam.critic_lr, images_seen, total, adam.lr_decay_start),
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
