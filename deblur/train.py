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
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import torch
import tyro

from cluster.errors import InputError, one_line_errors
from cluster.storage import absolute, join, open_store, read_url
from cluster.sync import Intervals, Rank, Sync
from deblur import recipe as recipes
from deblur.data.loader import Dataset
from deblur.data.plan import lanes_of
from deblur.data.shards import read_index
from deblur.fit import fit, plan_of, total_images
from deblur.models.vgg import Features, digest, load_features
from deblur.pack import pack_samples
from deblur.recipe import Recipe
from deblur.run import Origin, Run

MAX_VALIDATIONS = 100  # per run, where nothing else is said

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
    """Seconds to wait for nodes that are not there yet."""
    allow_recipe_change: bool = False
    """Go on with a run although its recipe or data differ now."""
    recipe: Annotated[Recipe, _flat] = field(default_factory=recipes.paper)

    def __post_init__(self) -> None:
        for name in ("nodes", "threads", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")

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
    run = Run(settings.run_url)
    plan = plan_of(settings.recipe, dataset.index)
    total = total_images(settings.recipe, plan)
    if any(checkpoint.images_seen >= total for checkpoint in run.checkpoints.list()):
        print(f"{run.url}: has seen its {total:,} images already; nothing to do", flush=True)
        return run
    print(f"{run.url}: {total:,} images in batches of {plan.batch_size}, {plan.num_samples:,} per epoch", flush=True)
    if settings.nodes == 1 and settings.ranks_per_node in (None, 1) and not _has_ray():
        _train_here(settings, dataset, features)
    else:
        from cluster import launch  # the only use of Ray, which a machine with one rank may lack

        placement = launch.Placement(
            nodes=settings.nodes, ranks_per_node=settings.ranks_per_node, wait_s=settings.wait_s
        )
        launch.launch(train_rank, _plain(settings), placement, run.url)
    return run


def prepare(settings: Settings) -> tuple[Settings, Dataset, Features]:
    """Finds all that can be known to be wrong before any work; the settings come back with nothing left open."""
    recipe = settings.recipe
    runs = open_store(settings.runs or os.environ.get("DEBLUR_RUNS") or "runs").url
    data = settings.data or os.environ.get("DEBLUR_DATA") or packed_samples(runs)
    dataset = open_dataset(data)
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
    origin = Origin(dataset=dataset.index.digest, features=digest(features))
    Run(settings.run_url).begin(recipe, origin, allow_change=settings.allow_recipe_change)
    return settings, dataset, features


def open_dataset(url: str) -> Dataset:
    """The dataset at a root. Raises InputError where there is none, or none to train on."""
    store = open_store(url)
    index = read_index(store)
    if not index.splits["train"].num_samples:
        raise InputError(f"{store.url}: its training split is empty; pack it again")
    return Dataset(store, index)


def train_rank(config: dict[str, Any], rank: Rank, sync: Sync) -> None:
    """What each rank does; `config` is what `_plain` wrote."""
    settings = Settings(**config | {"recipe": recipes.from_json(config["recipe"], "the driver")})
    assert settings.data
    _fit(settings, open_dataset(settings.data), _features(settings), rank, sync)


def _fit(settings: Settings, dataset: Dataset, features: Features, rank: Rank, sync: Sync) -> None:
    assert settings.validate_images
    intervals = Intervals(validate_images=settings.validate_images, checkpoint_s=settings.checkpoint_s)
    run = Run(settings.run_url, settings.keep)
    fit(settings.recipe, dataset, features, rank, sync, run, intervals=intervals, threads=settings.threads)


def _train_here(settings: Settings, dataset: Dataset, features: Features) -> None:
    _log.warning("Ray is not installed: training one rank in this process")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _fit(settings, dataset, features, Rank(device=device), Sync())


def _features(settings: Settings) -> Features:
    return load_features(settings.recipe.loss.features, settings.recipe.loss.feature_weights, settings.vgg_weights)


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


def _has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None


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
