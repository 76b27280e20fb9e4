"""A run from its settings to its end: everything that can be wrong is checked first, then the ranks are started."""

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster import exporter
from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from cluster.storage import Retry, absolute, join, open_store, preflight
from cluster.storage.lease import Holder, acquire_lease
from cluster.sync import Intervals, Rank, Sync
from deblur.config.cli import Kind
from deblur.config.recipes import Recipe
from deblur.data.dataset import Dataset, open_dataset
from deblur.data.index import INDEX, Index
from deblur.data.packing import packed_samples
from deblur.data.plan import lanes_of
from deblur.models.trained import absolute_model, build_model, read_model, read_recipe
from deblur.models.vgg import Features, digest
from deblur.training.config import RunConfig, WorkerConfig, features_of
from deblur.training.loop import fit, plan_of, total_images
from deblur.training.metrics import run_metrics
from deblur.training.run import Origin, Run, open_run
from deblur.training.settings import TrainSettings

MAX_VALIDATIONS = 100  # per run, unless --validate-images says otherwise
STARTUP_TIMEOUT_S = 15.0  # for storage at the start, when a wrong address is likelier than an outage


@dataclass(frozen=True)
class Job:
    """A run that can start: its resolved config, its files, and what it learns from."""

    config: RunConfig
    run: Run
    dataset: Dataset
    origin: Origin
    images_seen: int
    """By the newest checkpoint."""


def train(settings: TrainSettings, placement: Placement | None = None, callbacks: Sequence[Any] = ()) -> Run:
    """Trains to the end of the recipe, resuming the run if it was started before, and returns the finished run.

    On the nodes of the settings unless a `placement` says otherwise; `callbacks` of Ray Train receive the validations.
    """
    job = prepare(settings)
    print(_summary(job), flush=True)
    if settings.check:
        _check_access(settings, job)
    elif job.run.is_finished(job.config.total_images):
        print(f"{job.run.url}: has already seen its {job.config.total_images:,} images; nothing to do", flush=True)
    else:
        with acquire_lease(job.run.url) as holder:
            job.run.begin(job.config.recipe, job.origin)
            if placement or _needs_ray(settings):
                _launch(settings, job, holder, placement or settings.placement, callbacks)
            else:
                _train_in_this_process(job, holder)
        if placement is None:  # a search tells of its trials itself
            print(_outcome(job.run), flush=True)
    return job.run


def prepare(settings: TrainSettings) -> Job:
    """Finds everything that can be known to be wrong before any work starts. Raises InputError."""
    settings, dataset, features = resolve_inputs(settings)
    settings = replace(settings, init_from=settings.init_from and absolute_model(settings.init_from))
    name = settings.run or f"{settings.recipe.name}-{dataset.index.digest[:8]}"
    settings = replace(settings, run=name)  # checks a name that the recipe gives, too
    run = Run(join(settings.runs or "", name), settings.keep, retry=Retry(limit_s=settings.storage_wait_s))
    images_seen = run.images_seen()
    recipe, initial = _initial(settings, run, images_seen)
    plan = plan_of(recipe, dataset.index)
    lanes_of(0, _ranks_requested(settings), recipe.data.batch_size)
    total = total_images(recipe, plan)
    config = RunConfig(
        recipe=recipe,
        data=dataset.store.url,
        runs=settings.runs or "",
        name=name,
        total_images=total,
        intervals=Intervals(
            validate_images=settings.validate_images
            or max(plan.updates_per_epoch * plan.batch_size, total // MAX_VALIDATIONS),
            checkpoint_s=settings.checkpoint_s,
        ),
        keep=settings.keep,
        threads=settings.threads,
        max_bad_share=settings.max_bad_share,
        vgg_weights=settings.vgg_weights or "",
        init_from="" if images_seen else settings.init_from or "",
        retry=Retry(limit_s=settings.storage_wait_s),
        cache_dir=settings.cache_dir or "",
        cache_bytes=int(settings.cache_gb * 1e9),
        metrics_port=settings.metrics_port,
    )
    origin = replace(origin_of(dataset, features), initial=initial)
    if not settings.allow_recipe_change:
        run.check(recipe, origin)
    if rest := images_seen % plan.batch_size:
        raise InputError(
            f"{run.url}: its newest checkpoint is {rest} images past a whole number of updates of --batch-size "
            f"{plan.batch_size}; resume with the old batch size, or choose another --run"
        )
    return Job(config, run, dataset, origin, images_seen)


def _initial(settings: TrainSettings, run: Run, images_seen: int) -> tuple[Recipe, str]:
    """The recipe, with the generator of --init-from if there is one, and the digest of the weights it starts from.

    A run that resumes has both already: its source may be gone or have been trained on.
    """
    if images_seen and (recipe := run.recipe()):
        origin, generator = run.origin(), recipe.generator if settings.init_from else settings.recipe.generator
        return replace(settings.recipe, generator=generator), origin.initial if origin else ""
    if not settings.init_from:
        return settings.recipe, ""
    data = read_model(settings.init_from)
    build_model(data, settings.init_from, torch.device("cpu"))
    generator = read_recipe(data, settings.init_from).generator
    return replace(settings.recipe, generator=generator), hashlib.sha256(data).hexdigest()


def resolve_inputs(settings: Kind) -> tuple[Kind, Dataset, Features | None]:
    """Finds the dataset, the root of runs and the VGG weights; the returned settings have absolute addresses.

    Raises InputError or StorageUnavailable within seconds where an address is wrong.
    """
    retry = Retry(limit_s=min(STARTUP_TIMEOUT_S, settings.storage_wait_s))
    runs = open_store(settings.runs or os.environ.get("DEBLUR_RUNS") or "runs", retry)
    runs.list("preflight/")  # so that a wrong address is found out now and not after the long timeout of a run
    data = settings.data or os.environ.get("DEBLUR_DATA") or packed_samples(runs.url)
    dataset = open_dataset(data, retry)
    weights = settings.vgg_weights and absolute(settings.vgg_weights)
    features = features_of(settings.recipe, weights)
    return replace(settings, runs=runs.url, data=dataset.store.url, vgg_weights=weights), dataset, features


def origin_of(dataset: Dataset, features: Features | None) -> Origin:
    """What a run learns from."""
    return Origin(dataset=dataset.index.digest, features=digest(features) if features else "")


def train_rank(config: WorkerConfig, rank: Rank, sync: Sync) -> bool:
    """What each rank does. Returns whether the end of the recipe was reached."""
    run = open_run(config, rank)
    metrics = run_metrics(config.run.name, str(rank.rank))
    port = config.run.metrics_port
    with exporter.served(metrics, rank.host, port, 1 + rank.rank_of_node) as address:
        run.write_targets([config.driver_metrics, *sync.gather(address)])
        if rank.rank == 0:
            metrics.set("deblur_trial", config.is_trial)
        return fit(config.run, rank, sync, run, metrics)


def check_access(data: str, runs: str, placement: Placement) -> list[str]:
    """Addresses of the nodes, each of which has read the dataset's index and read and written the root of runs.

    Raises InputError if a node cannot, or if too few nodes are available within the wait.
    """
    from cluster.on_ray.launch import check_nodes_can_access  # needs Ray

    return check_nodes_can_access(join(data, INDEX), runs, placement, "--data and --runs (DEBLUR_DATA, DEBLUR_RUNS)")


def dataset_line(index: Index, data: str) -> str:
    """What a dataset contains, in one line."""
    splits = ", ".join(f"{split.num_samples:,} {name}" for name, split in index.splits.items())
    return f"dataset  {join(data, INDEX)}: {splits}; digest {index.digest[:8]}"


def _summary(job: Job) -> str:
    batch_size, total = job.config.recipe.data.batch_size, job.config.total_images
    begin = f"resumes at {job.images_seen:,}" if job.images_seen else "starts at 0"
    run_line = f"run      {job.run.url}: {begin} of {total:,} images, {total // batch_size:,} updates of {batch_size}"
    return f"{dataset_line(job.dataset.index, job.dataset.store.url)}\n{run_line}"


def _outcome(run: Run) -> str:
    """What came of a finished run, and the next commands."""
    scored = [
        line
        for line in run.metrics_until(run.images_seen())
        if None not in (line.get("validation_psnr"), line.get("validation_blurred_psnr"))
    ]
    lines = [f"finished {run.url}"]
    if scored:
        best = max(scored, key=lambda line: float(line["validation_psnr"]))
        gain = f"{best['validation_psnr']:.2f} dB, blurred {best['validation_blurred_psnr']:.2f} dB"
        lines.append(f"best     {gain}, at {best['images_seen']:,} images")
    lines += [
        f"next     python -m deblur.{command} {run.url}"
        for command in ("restore photo.jpg --out sharp.jpg --model", "serve --model", "report")
    ]
    return "\n".join(lines)


def _check_access(settings: TrainSettings, job: Job) -> None:
    """What is left of --check once the settings are resolved and the dataset is read."""
    runs = job.config.runs
    if _needs_ray(settings):
        nodes = check_access(job.config.data, runs, settings.placement)
        print(f"nodes    {', '.join(nodes)}: each can read the dataset, and read and write {runs}")
    else:
        with preflight.marker(open_store(runs, preflight.RETRY)) as key:
            preflight.read_and_write(runs, key)
        print(f"nodes    this machine, without Ray; can read and write {runs}")
    print("check passed; rerun without --check to start training")


def _train_in_this_process(job: Job, holder: Holder) -> None:
    """One rank in this process: Ray would take half a minute to start. Ctrl-C and SIGTERM stop it at a checkpoint."""
    metrics = run_metrics(job.config.name, "driver")
    metrics.set("deblur_ranks_wanted", 1)
    rank = Rank(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with exporter.served(metrics, rank.host, job.config.metrics_port) as address, _stopped_by_signals() as interrupted:
        config = WorkerConfig(run=job.config, lease=holder.lease, driver_metrics=address)
        try:
            finished = train_rank(config, rank, Sync(interrupted=interrupted.is_set))
        except torch.OutOfMemoryError as error:
            raise InputError(f"{rank.device}: not enough memory ({error}); lower --batch-size or --crop") from error
    if not finished:
        with contextlib.suppress(BrokenPipeError):
            print(f"saved at {job.run.images_seen():,} images; the same command resumes", flush=True)
        raise KeyboardInterrupt


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the second has its usual effect."""
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def stop(*_: Any) -> None:
        received.set()
        restore()
        with contextlib.suppress(OSError):  # a pipe that the same Ctrl-C has broken; print is not for handlers
            os.write(2, b"stopping at a checkpoint; once more to stop at once\n")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()


def _launch(settings: TrainSettings, job: Job, holder: Holder, placement: Placement, callbacks: Sequence[Any]) -> None:
    from cluster.on_ray import launch  # a machine with one rank may lack Ray

    metrics = run_metrics(job.config.name, "driver")
    metrics.set("deblur_ranks_wanted", _ranks_requested(settings))
    with launch.connected() as host, exporter.served(metrics, host, job.config.metrics_port) as address:

        def group_config(ranks: int) -> WorkerConfig:
            metrics.set("deblur_ranks_wanted", ranks)
            return WorkerConfig(
                run=job.config, lease=holder.renew(), driver_metrics=address, is_trial=placement.shared_cluster
            )

        job.run.lease = holder.lease
        job.run.write_targets([address])  # visible while it waits for nodes; rank 0 adds the others
        if placement.nodes > 1:
            check_access(job.config.data, job.config.runs, placement)
        launch.launch(train_rank, group_config, placement, job.run.images_seen, callbacks)


def _ranks_requested(settings: TrainSettings) -> int:
    return settings.nodes * (settings.ranks_per_node or 1)


def _needs_ray(settings: TrainSettings) -> bool:
    """Whether Ray runs the ranks; a single one on this machine trains in this process."""
    ranks = settings.ranks_per_node or max(1, torch.cuda.device_count())
    return settings.nodes * ranks > 1 or bool(os.environ.get("RAY_ADDRESS"))
