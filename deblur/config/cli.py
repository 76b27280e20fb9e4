"""What a training and a search are both told: where data and runs are, how ranks work; and how flags are read."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, TypeVar

import tyro

from cluster import exporter
from cluster.errors import InputError
from cluster.storage import read_url
from cluster.sync import COLLECTIVE_TIMEOUT_S
from deblur.config import recipes
from deblur.config.recipes import Recipe

_flat = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """The recipe's own fields can be set by flags, too."""

    data: str | None = None
    """Root of the dataset, a folder or s3://bucket/prefix [env DEBLUR_DATA; else the sample photographs]."""
    runs: str | None = None
    """Root of all runs, likewise [env DEBLUR_RUNS; else runs]."""
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
    check: bool = False
    """Do everything short of training: read and write from every node, and say what would run."""
    recipe: Annotated[Recipe, _flat] = field(default_factory=recipes.paper)

    def __post_init__(self) -> None:
        for name in ("ranks_per_node", "threads", "keep"):
            self.at_least_one(name)
        if not 0 <= self.storage_wait_s <= COLLECTIVE_TIMEOUT_S / 2:
            raise InputError(
                f"--storage-wait-s is {self.storage_wait_s}; ranks take one for dead that is silent for "
                f"{COLLECTIVE_TIMEOUT_S} s, so it must lie between 0 and {COLLECTIVE_TIMEOUT_S // 2}"
            )
        exporter.check_port(self.metrics_port)
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"--max-bad-share is {self.max_bad_share}; it must lie between 0 and 1")

    def at_least_one(self, name: str) -> None:
        """Raises InputError where a field is a number below 1."""
        value = getattr(self, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


Kind = TypeVar("Kind", bound=SharedSettings)


def parse(kind: type[Kind], arguments: Sequence[str], program: str, description: str) -> Kind:
    """Settings from flags. `--recipe` chooses the preset or file whose fields the other flags then change."""
    name, arguments = _take_flag(arguments, "--recipe")
    chosen = _chosen_recipe(name or "paper")
    return tyro.cli(
        kind,
        args=arguments,
        default=kind(recipe=chosen),
        description=f"{description}\n--recipe {'|'.join(recipes.PRESETS)}|FILE chooses the defaults of what is learned "
        f"(now: {chosen.name}).",
        prog=program,
    )


def plain(settings: SharedSettings) -> dict[str, Any]:
    """Settings as plain values: no class travels to the workers, and no secret is among them."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return values | {"recipe": recipes.to_json(settings.recipe)}


def from_plain(kind: type[Kind], values: dict[str, Any]) -> Kind:
    """The settings that `plain` made plain."""
    return kind(**values | {"recipe": recipes.from_json(values["recipe"], "the driver")})


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
