"""One run from its settings to its end: what is wrong is found first, then ranks are started."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from cluster import exporter
from cluster.errors import InputError
from cluster.exporter import Numbers
from cluster.on_ray.placement import Placement
from cluster.storage import Retry, absolute, join, open_store, preflight
from cluster.storage.cache import Cache
from cluster.storage.lease import Holder, Lease, acquire_lease
from cluster.sync import Intervals, Rank, Sync
from deblur.config import cli
from deblur.config.cli import Kind, SharedSettings
from deblur.data.dataset import Dataset, open_dataset
from deblur.data.packing import packed_samples
from deblur.data.plan import lanes_of
from deblur.data.shards import INDEX, Index
from deblur.models.vgg import Features, digest, load_features
from deblur.training.loop import fit, plan_of, total_images
from deblur.training.metrics import numbers_of
from deblur.training.run import Origin, Run


def nodes_that_reach(data: str, runs: str, placement: Placement) -> list[str]:
    """Addresses of the nodes, each of which has read the dataset's index and read and written the runs' root.

    Raises InputError where one cannot, and where too few nodes come within the wait.
    """
    from cluster.on_ray.launch import check_nodes_can_access  # needs Ray

    return check_nodes_can_access(join(data, INDEX), runs, placement, "--data and --runs (DEBLUR_DATA, DEBLUR_RUNS)")


def summary(index: Index, data: str, run_url: str, images_seen: int, total: int, batch_size: int) -> str:
    """What would run, in a few lines."""
    begin = f"goes on from {images_seen:,}" if images_seen else "starts at 0"
    return "\n".join(
        [
            dataset_line(index, data),
            f"run      {run_url}: {begin} of {total:,} images, {total // batch_size:,} updates of {batch_size}",
        ]
    )


def dataset_line(index: Index, data: str) -> str:
    """What a dataset has, in one line."""
    splits = ", ".join(f"{split.num_samples:,} {name}" for name, split in index.splits.items())
    return f"dataset  {join(data, INDEX)}: {splits}; digest {index.digest[:8]}"


MAX_VALIDATIONS = 100  # per run, where nothing else is said


STARTUP_TIMEOUT_S = 15.0  # what storage gets before a start, when a wrong address is likelier than a failure


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(SharedSettings):
    """Where a run takes place and what it is called. The recipe's own fields can be set by flags, too."""

    run: str | None = None
    """Name of the run; else from the recipe and the dataset. The same name goes on with the same run."""
    nodes: int = 1
    """Machines, with all their GPUs: one rank per GPU, or one per node without GPUs."""
    min_nodes: int | None = None
    """Go on with as few nodes as this when some are lost, and with more, up to --nodes, when some come."""
    allow_recipe_change: bool = False
    """Go on with a run although its recipe or data differ now."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one("nodes")
        self.at_least_one("min_nodes")
        if self.min_nodes and self.min_nodes > self.nodes:
            raise InputError(f"--min-nodes {self.min_nodes} is more than --nodes {self.nodes}")

    @property
    def run_url(self) -> str:
        """The run's own folder or URL; known once the run has a name."""
        assert self.runs
        assert self.run
        return join(self.runs, self.run)


def train(settings: TrainSettings, placement: Placement | None = None, callbacks: Sequence[Any] = ()) -> Run:
    """Trains to the end of the recipe, going on from where the run was, and returns the finished run.

    On the nodes of the settings unless a `placement` says otherwise; `callbacks` of Ray Train hear the validations.
    """
    settings, dataset, features = prepare(settings)
    run, batch_size = Run(settings.run_url), settings.recipe.data.batch_size
    total, done = total_images(settings.recipe, plan_of(settings.recipe, dataset.index)), run.images_seen()
    print(summary(dataset.index, dataset.store.url, run.url, done, total, batch_size), flush=True)
    if done % batch_size:
        raise InputError(
            f"{run.url}: has seen {done:,} images, no whole number of updates of --batch-size {batch_size}; go on with "
            "the old batch size, or choose another --run"
        )
    if settings.check:
        _check(settings)
    elif run.is_finished(total):
        print(f"{run.url}: has seen its {total:,} images already; nothing to do", flush=True)
    else:
        with acquire_lease(run.url) as holder:
            run.begin(settings.recipe, origin_of(dataset, features))
            _start(settings, features, holder, placement or _placement(settings), callbacks)
    return run


def _start(
    settings: TrainSettings, features: Features, holder: Holder, placement: Placement, callbacks: Sequence[Any]
) -> None:
    numbers = numbers_of(Run(settings.run_url).name, "driver")
    numbers.set("deblur_ranks_wanted", settings.nodes * (settings.ranks_per_node or 1))
    if _needs_ray(settings):
        _launch(settings, holder, numbers, placement, callbacks)
    else:
        _log.warning("Ray is not installed: training one rank in this process")
        rank = Rank(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with exporter.served(numbers, rank.host, settings.metrics_port) as driver:
            _fit(settings, holder.lease, features, rank, Sync(), driver)


def _launch(
    settings: TrainSettings, holder: Holder, numbers: Numbers, placement: Placement, callbacks: Sequence[Any]
) -> None:
    from cluster.on_ray import launch  # a machine with one rank may lack Ray

    retry = Retry(limit_s=settings.storage_wait_s)
    run = Run(settings.run_url, retry=retry)
    with launch.connected() as host, exporter.served(numbers, host, settings.metrics_port) as driver:

        def config_of_a_group(ranks_wanted: int) -> dict[str, Any]:
            numbers.set("deblur_ranks_wanted", ranks_wanted)
            # A lease for each: ranks that were given up, but run on where nobody reaches them, can commit no more.
            lease = asdict(holder.renew())
            return {
                "settings": cli.plain(settings),
                "lease": lease,
                "driver": driver,
                "trial": placement.shared_cluster,
            }

        if driver:  # to be seen while it waits for nodes; the first rank then adds the others
            Run(settings.run_url, lease=holder.lease, retry=retry).write_targets([driver])
        if settings.nodes > 1:
            nodes_that_reach(settings.data, settings.runs, placement)
        launch.launch(train_rank, config_of_a_group, placement, run.images_seen, callbacks)


def _check(settings: TrainSettings) -> None:
    """The rest of --check: the settings were resolved, the dataset was read."""
    if _needs_ray(settings):
        nodes = nodes_that_reach(settings.data, settings.runs, _placement(settings))
        print(f"nodes    {', '.join(nodes)}: each has read the dataset, and read and written {settings.runs}")
    else:
        with preflight.marker(open_store(settings.runs, preflight.RETRY)) as key:
            preflight.read_and_write(settings.runs, key)
        print(f"nodes    this machine, without Ray; has read and written {settings.runs}")
    print("all is well; the same command without --check trains")


def prepare(settings: TrainSettings) -> tuple[TrainSettings, Dataset, Features]:
    """Finds all that can be known to be wrong before any work; the settings come back with nothing left open."""
    settings, dataset, features = located(settings)
    recipe, plan = settings.recipe, plan_of(settings.recipe, dataset.index)
    lanes_of(0, settings.nodes * (settings.ranks_per_node or 1), recipe.data.batch_size)
    epoch = plan.updates_per_epoch * plan.batch_size
    settings = replace(
        settings,
        run=settings.run or f"{recipe.name}-{dataset.index.digest[:8]}",
        validate_images=settings.validate_images or max(epoch, total_images(recipe, plan) // MAX_VALIDATIONS),
    )
    if not settings.allow_recipe_change:
        Run(settings.run_url, retry=_first(settings)).check(recipe, origin_of(dataset, features))
    return settings, dataset, features


def located(settings: Kind) -> tuple[Kind, Dataset, Features]:
    """Finds the dataset, the runs' root and the weights of VGG; the settings come back with their whole addresses."""
    runs = open_store(settings.runs or os.environ.get("DEBLUR_RUNS") or "runs").url
    data = settings.data or os.environ.get("DEBLUR_DATA") or packed_samples(runs)
    dataset = open_dataset(data, _first(settings))
    weights = settings.vgg_weights and absolute(settings.vgg_weights)
    return replace(settings, runs=runs, data=dataset.store.url, vgg_weights=weights), dataset, _features(settings)


def _first(settings: SharedSettings) -> Retry:
    """The patience of a start."""
    return Retry(limit_s=min(STARTUP_TIMEOUT_S, settings.storage_wait_s))


def train_rank(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    """What each rank does, with the plain values of `_launch`. Returns whether the end of the recipe was reached."""
    settings = cli.from_plain(TrainSettings, config["settings"])
    lease = Lease(**config["lease"])
    return _fit(settings, lease, _features(settings), rank, sync, config["driver"], config["trial"])


def _fit(
    settings: TrainSettings, lease: Lease, features: Features, rank: Rank, sync: Sync, driver: str, trial: bool = False
) -> bool:
    """`driver` is where that one serves its metrics."""
    assert settings.data
    assert settings.validate_images
    retry = Retry(limit_s=settings.storage_wait_s)
    dataset = open_dataset(settings.data, retry)
    if settings.cache_dir:
        limit_bytes = int(settings.cache_gb * 1e9)
        cache = Cache(dataset.store, settings.cache_dir, limit_bytes, version=dataset.index.digest)
        dataset = replace(dataset, cache=cache)
    run = Run(settings.run_url, settings.keep, lease=lease, retry=retry)
    numbers = numbers_of(run.name, str(rank.rank))
    if rank.rank == 0:
        numbers.set("deblur_trial", trial)
    with exporter.served(numbers, rank.host, settings.metrics_port, 1 + rank.rank_of_node) as address:
        addresses = [driver, *sync.gather(address)]
        if rank.rank == 0:
            run.write_targets([address for address in addresses if address])
        return fit(
            settings.recipe,
            dataset,
            features,
            rank,
            sync,
            run,
            intervals=Intervals(validate_images=settings.validate_images, checkpoint_s=settings.checkpoint_s),
            threads=settings.threads,
            max_bad_share=settings.max_bad_share,
            numbers=numbers,
        )


def _features(settings: SharedSettings) -> Features:
    return load_features(settings.recipe.loss.features, settings.recipe.loss.feature_weights, settings.vgg_weights)


def origin_of(dataset: Dataset, features: Features) -> Origin:
    """What a run learns from."""
    return Origin(dataset=dataset.index.digest, features=digest(features))


def _placement(settings: TrainSettings) -> Placement:
    return Placement(
        nodes=settings.nodes,
        min_nodes=settings.min_nodes,
        ranks_per_node=settings.ranks_per_node,
        wait_s=settings.wait_s,
    )


def _needs_ray(settings: TrainSettings) -> bool:
    """One rank trains in this process where Ray is not installed."""
    return settings.nodes > 1 or settings.ranks_per_node not in (None, 1) or importlib.util.find_spec("ray") is not None
