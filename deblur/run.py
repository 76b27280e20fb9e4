"""A run: a name and what it wrote, under the root of runs (a folder or s3://bucket/prefix).

{runs}/{run}/recipe.json      what is learned
             origin.json      from what: digests of the dataset and of the VGG weights
             checkpoints/     see cluster/checkpoints.py
             metrics.jsonl    one line per report
             samples/         {images_seen}.png, blurred | restored | sharp
             lease/           see cluster/lease.py
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from cluster import lease as leases
from cluster.checkpoints import Checkpoints
from cluster.errors import InputError, NotFound
from cluster.lease import Lease
from cluster.storage import Retry, Store, join, open_store
from deblur import recipe as recipes
from deblur.data import pictures
from deblur.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run learns from."""

    dataset: str
    features: str


class Run:
    """The files of one run. Only rank 0 and the driver write; commits are made only while `lease` is held."""

    def __init__(self, url: str, keep: int = 2, *, lease: Lease | None = None, retry: Retry | None = None) -> None:
        self.url = url
        self.name = url.rstrip("/").rpartition("/")[2]
        self.store: Store = open_store(url, retry)
        self._may_write = (lambda: None) if lease is None else partial(leases.check, self.store, lease)
        self.checkpoints = Checkpoints(self.store, keep, self._may_write)
        self._lines: list[dict[str, Any]] = []

    def images_seen(self) -> int:
        """Of the newest committed checkpoint; 0 before the first."""
        return max((checkpoint.images_seen for checkpoint in self.checkpoints.list()), default=0)

    def is_finished(self, total_images: int) -> bool:
        """Whether a checkpoint of the end is there and whole."""
        return self.images_seen() >= total_images and (
            (newest := self.checkpoints.newest()) is not None and newest[0].images_seen >= total_images
        )

    def check(self, recipe: Recipe, origin: Origin) -> None:
        """Raises InputError with the difference where the run was started with something else."""
        if changes := self._changes(recipe, origin):
            raise InputError(
                f"{self.url}: this run was started with another recipe ({'; '.join(changes)}); choose another --run, "
                "the old settings, or --allow-recipe-change"
            )

    def begin(self, recipe: Recipe, origin: Origin) -> None:
        """Writes what the run is."""
        self.store.put("origin.json", json.dumps(asdict(origin), indent=2).encode())
        self.store.put("recipe.json", recipes.to_json(recipe).encode())

    def _changes(self, recipe: Recipe, origin: Origin) -> list[str]:
        try:
            old = recipes.from_json(self.store.get("recipe.json"), join(self.url, "recipe.json"))
            old_origin = json.loads(self.store.get("origin.json"))
        except NotFound:
            return []
        moved = [f"{k}: {old_origin.get(k)} -> {v}" for k, v in asdict(origin).items() if old_origin.get(k) != v]
        return recipes.difference(old, recipe) + moved

    def resume_metrics(self, images_seen: int) -> None:
        """Takes up the metrics of the run so far; lines of updates that were lost are dropped."""
        try:
            lines = self.store.get("metrics.jsonl").decode().splitlines()
        except NotFound:
            lines = []
        self._lines = [line for line in map(json.loads, lines) if line["images_seen"] <= images_seen]

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """One more line; numbers that are not finite become null, which JSON knows."""
        self._lines.append({k: None if _not_finite(v) else v for k, v in metrics.items()})

    def write_metrics(self) -> None:
        """Makes the lines so far visible. Object stores cannot append: the file is written whole."""
        self._may_write()
        self.store.put("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self._lines).encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines written so far."""
        return [json.loads(line) for line in self.store.get("metrics.jsonl").decode().splitlines()]

    def write_sample(self, images_seen: int, blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray) -> None:
        """One PNG with the three uint8 [H, W, 3] side by side."""
        strip = np.concatenate([blurred, restored, sharp], axis=1)
        self.store.put(f"samples/{images_seen:012d}.png", pictures.encode_png(strip))


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
