"""Trains a deblurring GAN: python -m deblur.train --recipe paper --nodes 4

With nothing set it packs the sample photographs and trains on them, on this machine, into runs/. The same command again
goes on where it stopped.
"""

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

import torch
import tyro

from cluster import exporter, preflight
from cluster import lease as leases
from cluster.cache import Cache
from cluster.errors import InputError, one_line_errors
from cluster.exporter import Numbers
from cluster.lease import Holder, Lease
from cluster.placement import Placement
from cluster.storage import Retry, absolute, join, open_store, read_url
from cluster.sync import COLLECTIVE_TIMEOUT_S, Intervals, Rank, Sync
from deblur import recipe as recipes
from deblur.check import nodes_that_reach, summary
from deblur.data.loader import Dataset
from deblur.data.plan import lanes_of
from deblur.data.shards import read_index
from deblur.fit import fit, plan_of, total_images
from deblur.models.vgg import Features, digest, load_features
from deblur.pack import pack_samples
from deblur.recipe import Recipe
from deblur.run import Origin, Run
from deblur.telemetry import numbers_of

MAX_VALIDATIONS = 100  # per run, where nothing else is said
FIRST_ANSWER_S = 15.0  # what storage gets before a start, when a wrong address is likelier than a failure

_flat = tyro.conf.arg(name="")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a run takes place and what it is called. The recipe's own fields can be set by flags, too."""

    data: str | None = None
    """Root of the dataset, a folder or s3://bucket/prefix [env DEBLUR_DATA; else the sample photographs]."""
    runs: str | None = None
    """Root of all runs, likewise [env DEBLUR_RUNS; else runs]."""
    run: str | None = None
    """Name of the run; else from the recipe and the dataset. The same name goes on with the same run."""
    nodes: int = 1
    """Machines, with all their GPUs: one rank per GPU, or one per node without GPUs."""
    min_nodes: int | None = None
    """Go on with as few nodes as this when some are lost, and with more, up to --nodes, when some come."""
    ranks_per_node: int | None = None
    """Another number of ranks per node."""
    threads: int = 2
    """Threads per rank that decode pictures."""
    vgg_weights: str | None = None
    """File or s3:// URL of VGG weights; else torchvision's are downloaded."""
    validate_images: int | None = None
    """Validate each time so many images were seen; else once per epoch, and at most 100 times."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the best."""
    wait_s: float = 600.0
    """Seconds to wait for nodes that are not there, or no longer."""
    storage_wait_s: float = 300.0
    """Seconds that training waits for storage that does not answer, before the run ends."""
    cache_dir: str | None = None
    """Folder on each node's disk for shards that were read, so that later epochs need no network."""
    cache_gb: float = 50.0
    """How many gigabytes it may hold."""
    max_bad_share: float = 0.01
    """Share of samples that may fail to decode before the run ends; the one before takes the place of each."""
    metrics_port: int = 9170
    """Port of the driver's metrics; each rank of a node takes one of the next, for Prometheus. 0: none are served."""
    allow_recipe_change: bool = False
    """Go on with a run although its recipe or data differ now."""
    check: bool = False
    """Do everything short of training: read and write from every node, and say what would run."""
    recipe: Annotated[Recipe, _flat] = field(default_factory=recipes.paper)

    def __post_init__(self) -> None:
        for name in ("nodes", "min_nodes", "ranks_per_node", "threads", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if self.min_nodes and self.min_nodes > self.nodes:
            raise InputError(f"--min-nodes {self.min_nodes} is more than --nodes {self.nodes}")
        if not 0 <= self.storage_wait_s <= COLLECTIVE_TIMEOUT_S / 2:
            raise InputError(
                f"--storage-wait-s is {self.storage_wait_s}; ranks take one for dead that is silent for "
                f"{COLLECTIVE_TIMEOUT_S} s, so it must lie between 0 and {COLLECTIVE_TIMEOUT_S // 2}"
            )
        last = 65536 - exporter.PORTS
        if self.metrics_port and not 1024 <= self.metrics_port <= last:
            raise InputError(
                f"--metrics-port is {self.metrics_port}; it must lie between 1024 and {last}, or be 0 for none"
            )
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"--max-bad-share is {self.max_bad_share}; it must lie between 0 and 1")

    @property
    def run_url(self) -> str:
        """The run's own folder or URL; known once the run has a name."""
        assert self.runs
        assert self.run
        return join(self.runs, self.run)


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from flags. `--recipe` chooses the preset or file whose fields the other flags then change."""
    name, arguments = _take_flag(arguments, "--recipe")
    chosen = _chosen_recipe(name or "paper")
    return tyro.cli(
        Settings,
        args=arguments,
        default=Settings(recipe=chosen),
        description=f"{__doc__}\n--recipe {'|'.join(recipes.PRESETS)}|FILE chooses the defaults of what is learned "
        f"(now: {chosen.name}).",
        prog="python -m deblur.train",
    )


def train(settings: Settings) -> Run:
    """Trains to the end of the recipe, going on from where the run was, and returns the finished run."""
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
        with leases.held(run.url) as holder:
            run.begin(settings.recipe, _origin(dataset, features))
            _start(settings, features, holder)
    return run


def _start(settings: Settings, features: Features, holder: Holder) -> None:
    numbers = numbers_of(Run(settings.run_url).name, "driver")
    numbers.set("deblur_ranks_wanted", settings.nodes * (settings.ranks_per_node or 1))
    if _needs_ray(settings):
        _launch(settings, holder, numbers)
    else:
        _log.warning("Ray is not installed: training one rank in this process")
        rank = Rank(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with exporter.served(numbers, rank.host, settings.metrics_port) as driver:
            _fit(settings, holder.lease, features, rank, Sync(), driver)


def _launch(settings: Settings, holder: Holder, numbers: Numbers) -> None:
    from cluster import launch  # a machine with one rank may lack Ray

    placement = _placement(settings)
    retry = Retry(limit_s=settings.storage_wait_s)
    run = Run(settings.run_url, retry=retry)
    with launch.connected() as host, exporter.served(numbers, host, settings.metrics_port) as driver:

        def config_of_a_group(ranks_wanted: int) -> dict[str, Any]:
            numbers.set("deblur_ranks_wanted", ranks_wanted)
            # A lease for each: ranks that were given up, but run on where nobody reaches them, can commit no more.
            return {"settings": _plain(settings), "lease": asdict(holder.renew()), "driver": driver}

        if driver:  # to be seen while it waits for nodes; the first rank then adds the others
            Run(settings.run_url, lease=holder.lease, retry=retry).write_targets([driver])
        if settings.nodes > 1:
            nodes_that_reach(settings.data, settings.runs, placement)
        launch.launch(train_rank, config_of_a_group, placement, run.images_seen)


def _check(settings: Settings) -> None:
    """The rest of --check: the settings were resolved, the dataset was read."""
    if _needs_ray(settings):
        nodes = nodes_that_reach(settings.data, settings.runs, _placement(settings))
        print(f"nodes    {', '.join(nodes)}: each has read the dataset, and read and written {settings.runs}")
    else:
        with preflight.marker(open_store(settings.runs, preflight.ANSWER)) as key:
            preflight.read_and_write(settings.runs, key)
        print(f"nodes    this machine, without Ray; has read and written {settings.runs}")
    print("all is well; the same command without --check trains")


def prepare(settings: Settings) -> tuple[Settings, Dataset, Features]:
    """Finds all that can be known to be wrong before any work; the settings come back with nothing left open."""
    recipe, first = settings.recipe, Retry(limit_s=min(FIRST_ANSWER_S, settings.storage_wait_s))
    runs = open_store(settings.runs or os.environ.get("DEBLUR_RUNS") or "runs").url
    data = settings.data or os.environ.get("DEBLUR_DATA") or packed_samples(runs)
    dataset = open_dataset(data, first)
    plan = plan_of(recipe, dataset.index)
    lanes_of(0, settings.nodes * (settings.ranks_per_node or 1), recipe.data.batch_size)
    features = _features(settings)
    epoch = plan.updates_per_epoch * plan.batch_size
    settings = replace(
        settings,
        runs=runs,
        data=dataset.store.url,
        vgg_weights=settings.vgg_weights and absolute(settings.vgg_weights),
        run=settings.run or f"{recipe.name}-{dataset.index.digest[:8]}",
        validate_images=settings.validate_images or max(epoch, total_images(recipe, plan) // MAX_VALIDATIONS),
    )
    if not settings.allow_recipe_change:
        Run(settings.run_url, retry=first).check(recipe, _origin(dataset, features))
    return settings, dataset, features


def open_dataset(url: str, retry: Retry | None = None) -> Dataset:
    """The dataset at a root. Raises InputError where there is none, or none to train on."""
    store = open_store(url, retry)
    index = read_index(store)
    if not index.splits["train"].num_samples:
        raise InputError(f"{store.url}: its training split is empty; pack it again")
    return Dataset(store, index)


def train_rank(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    """What each rank does, with the plain values of `_launch`. Returns whether the end of the recipe was reached."""
    plain = config["settings"]
    settings = Settings(**plain | {"recipe": recipes.from_json(plain["recipe"], "the driver")})
    return _fit(settings, Lease(**config["lease"]), _features(settings), rank, sync, config["driver"])


def _fit(settings: Settings, lease: Lease, features: Features, rank: Rank, sync: Sync, driver: str) -> bool:
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


def _features(settings: Settings) -> Features:
    return load_features(settings.recipe.loss.features, settings.recipe.loss.feature_weights, settings.vgg_weights)


def _origin(dataset: Dataset, features: Features) -> Origin:
    return Origin(dataset=dataset.index.digest, features=digest(features))


def _placement(settings: Settings) -> Placement:
    return Placement(
        nodes=settings.nodes,
        min_nodes=settings.min_nodes,
        ranks_per_node=settings.ranks_per_node,
        wait_s=settings.wait_s,
    )


def packed_samples(runs: str) -> str:
    """The sample photographs as a dataset beside the runs, packed at the first call."""
    store = open_store(join(runs, "sample-set"))
    try:
        read_index(store)
    except InputError:
        print(f"no --data and no DEBLUR_DATA: packing the sample photographs into {store.url}", flush=True)
        pack_samples(store)
    return store.url


def _plain(settings: Settings) -> dict[str, Any]:
    """Settings as plain values: no class travels to the workers, and no secret is among them."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return values | {"recipe": recipes.to_json(settings.recipe)}


def _needs_ray(settings: Settings) -> bool:
    """One rank trains in this process where Ray is not installed."""
    return settings.nodes > 1 or settings.ranks_per_node not in (None, 1) or importlib.util.find_spec("ray") is not None


def _take_flag(arguments: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of one flag, and the arguments without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value")
    known, rest = parser.parse_known_args(arguments)
    return known.value, rest


def _chosen_recipe(name: str) -> Recipe:
    """A preset by name, or the recipe in a file or object. Raises InputError naming the presets."""
    if name in recipes.PRESETS:
        return recipes.PRESETS[name]()
    if name.endswith(".json"):
        return recipes.from_json(read_url(name), name)
    raise InputError(f"--recipe {name}: no such recipe; choose {', '.join(recipes.PRESETS)}, or a .json file")


def main() -> None:
    with one_line_errors():
        train(parse(sys.argv[1:]))


if __name__ == "__main__":
    # Ray sends functions by the name of their module, which for the running script would be __main__.
    from deblur.train import main as imported_main

    imported_main()
