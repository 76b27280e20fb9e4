"""Settings that training and search share, and how flags become settings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, TypeVar

import tyro

from cluster import exporter
from cluster.errors import InputError
from cluster.on_ray.placement import COLLECTIVE_TIMEOUT_S
from cluster.storage import read_url
from deblur.config import presets, recipes
from deblur.config.recipes import Recipe

_flat = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """Every field of the recipe has a flag, too."""

    data: str | None = None
    """Root of the dataset, a folder or s3://bucket/prefix [env DEBLUR_DATA; default: the sample photographs]."""
    runs: str | None = None
    """Root of all runs, a folder or s3://bucket/prefix [env DEBLUR_RUNS; default: runs]."""
    ranks_per_node: int | None = None
    """Ranks per node; default: one per GPU, or one per node without GPUs."""
    threads: int = 2
    """Decoder threads per rank."""
    vgg_weights: str | None = None
    """File or s3:// URL of VGG weights; default: download torchvision's."""
    validate_images: int | None = None
    """Images between validations; default: one epoch, or more so that there are at most 100."""
    checkpoint_s: float = 60.0
    """Seconds between checkpoints."""
    keep: int = 2
    """Number of newest checkpoints to keep, in addition to the best."""
    wait_s: float = 600.0
    """Seconds to wait for missing or lost nodes."""
    storage_wait_s: float = 300.0
    """Seconds to retry unavailable storage before the run fails."""
    cache_dir: str | None = None
    """Folder on each node's disk that caches shards, so that later epochs need no network."""
    cache_gb: float = 50.0
    """Maximum size of the cache in gigabytes."""
    max_bad_share: float = 0.01
    """Fraction of samples that may fail to decode before the run fails; each is replaced by the previous one."""
    metrics_port: int = 9170
    """Port of the driver's Prometheus metrics; the ranks of a node take the following ports. 0 disables metrics."""
    check: bool = False
    """Validate everything without training: access to storage from every node, data and settings."""
    preset: Annotated[str, tyro.conf.arg(name="recipe", metavar="NAME|FILE")] = "paper"
    """Preset (blog, paper, demo), .json file or s3:// URL of one; the flags below override its fields."""
    recipe: Annotated[Recipe, _flat] = field(default_factory=presets.paper)

    def __post_init__(self) -> None:
        for name in ("ranks_per_node", "threads", "keep"):
            self.at_least_one(name)
        if not 0 <= self.storage_wait_s <= COLLECTIVE_TIMEOUT_S / 2:
            raise InputError(
                f"--storage-wait-s is {self.storage_wait_s}; it must lie between 0 and {COLLECTIVE_TIMEOUT_S // 2}, "
                f"well below the collective timeout of {COLLECTIVE_TIMEOUT_S} s"
            )
        exporter.check_port(self.metrics_port)
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"--max-bad-share is {self.max_bad_share}; it must lie between 0 and 1")

    def check_name(self, name: str) -> None:
        """Raises InputError if a field is no name of a folder below the root of runs."""
        value = getattr(self, name)
        if value and not all(_NAME.fullmatch(part) for part in value.split("/")):
            raise InputError(
                f"--{name} {value}: not a name; use letters, digits, spaces and . _ - = @ : , and a letter or digit "
                "first, at most 100, perhaps several such parts separated by /"
            )

    def at_least_one(self, name: str) -> None:
        """Raises InputError if a field is a number below 1."""
        value = getattr(self, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


Kind = TypeVar("Kind", bound=SharedSettings)
_NAME = re.compile(r"\w[\w .=@:,-]{0,99}")  # of a part: also a label in Prometheus, a key in S3


def parse(kind: type[Kind], arguments: Sequence[str], program: str, description: str) -> Kind:
    """Settings from flags. `--recipe` selects a preset or file; the other flags override its fields."""
    name = _value_of("--recipe", arguments) or "paper"  # read first: it sets the defaults of other flags
    default = kind(preset=name, recipe=_chosen_recipe(name))
    return tyro.cli(kind, args=arguments, default=default, description=description, prog=program)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag, given as two arguments or as --flag=value; the last one counts."""
    for argument, following in reversed([*pairwise([*arguments, ""])]):
        if argument == flag:
            return following
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _chosen_recipe(name: str) -> Recipe:
    """A preset by name, or the recipe of a file or s3:// URL. Raises InputError naming the presets."""
    if name in presets.PRESETS:
        return presets.PRESETS[name]()
    if name.endswith(".json"):
        return recipes.from_json(read_url(name), name)
    raise InputError(f"--recipe {name}: no such recipe; choose {', '.join(presets.PRESETS)}, or a .json file")
