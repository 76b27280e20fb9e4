"""A run: a name and what it wrote, under the root of runs (a folder or s3://bucket/prefix).

{runs}/{run}/recipe.json      what is learned
             origin.json      from what: digests of the dataset and of the VGG weights
             checkpoints/     see cluster/storage/checkpoints.py
             metrics.jsonl    one line per report
             samples/         {images_seen}.png, blurred | restored | sharp
             history.json     how far the newest start came, and what befell the run
             targets.json     where the metrics of its processes are, for Prometheus
             lease/           see cluster/storage/lease.py
"""

import json
import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cluster import exporter
from cluster.errors import DamagedError, InputError, NotFound
from cluster.storage import Retry, Store, join, open_store
from cluster.storage.checkpoints import Checkpoints
from cluster.storage.lease import Lease, check_lease
from deblur.config import recipes
from deblur.config.recipes import Recipe
from deblur.data import pictures

# A note that cannot be written is followed by another: none is worth waiting for.
_NOTE = Retry(limit_s=5.0, stall_s=5.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run learns from."""

    dataset: str
    features: str


@dataclass(frozen=True, kw_only=True)
class History:
    """What befell a run in all its life. Updates lost are those that a later start had to make again."""

    images_seen: int = 0
    """How far the newest start came, saved or not."""
    restarts: int = 0
    updates_lost: int = 0
    preemption_notices: int = 0


class Run:
    """The files of one run. Only rank 0 and the driver write; commits are made only while `lease` is held."""

    def __init__(self, url: str, keep: int = 2, *, lease: Lease | None = None, retry: Retry | None = None) -> None:
        self.url = url
        self.name = url.rstrip("/").rpartition("/")[2]
        self.store: Store = open_store(url, retry)
        self._may_write = (lambda: None) if lease is None else partial(check_lease, self.store, lease)
        self.checkpoints = Checkpoints(self.store, keep, self._may_write)
        self._lines: list[dict[str, Any]] = []
        self.history = History()
        self._notes = open_store(url, _NOTE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._noting: Future[None] | None = None

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

    def resume(self, images_seen: int, batch_size: int) -> None:
        """Takes up the metrics and the history of the run, which goes on from `images_seen`.

        Lines of updates that were lost are dropped.
        """
        self._lines = self.metrics_until(images_seen)
        old = self._old_history()
        if old:
            lost = max(0, old.images_seen - images_seen) // batch_size
            old = replace(old, restarts=old.restarts + 1, updates_lost=old.updates_lost + lost)
        self.history = replace(old or History(), images_seen=images_seen)
        self._note(self.history)

    def metrics_until(self, images_seen: int) -> list[dict[str, Any]]:
        """The lines of the work up to there; none before the first report."""
        try:
            lines = self.store.get("metrics.jsonl").decode().splitlines()
        except NotFound:
            return []
        return [line for line in map(json.loads, lines) if line["images_seen"] <= images_seen]

    def _old_history(self) -> History | None:
        try:
            return History(**{name: int(value) for name, value in json.loads(self.store.get("history.json")).items()})
        except NotFound:
            return None
        except (DamagedError, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s: unreadable, the history begins again: %s", join(self.url, "history.json"), error)
            return None

    def reached(self, images_seen: int, *, noticed: bool = False) -> None:
        """Notes how far the run is, and a notice that a node is going to be taken; beside training."""
        notices = self.history.preemption_notices + noticed
        self.history = replace(self.history, images_seen=images_seen, preemption_notices=notices)
        if self._noting is None or self._noting.done():
            self._noting = self._thread.submit(self._note, self.history)

    def note_the_rest(self) -> None:
        """Notes what came while another note was being written. For the end of a start."""
        self._thread.submit(self._note, self.history).result()

    def _note(self, history: History) -> None:
        # No commit: nothing depends on it, and the next note of the run's holder replaces that of another.
        try:
            self._notes.put("history.json", json.dumps(asdict(history), indent=2).encode())
        except Exception as error:  # whatever it is, the work goes on
            _log.warning("%s: what befell the run could not be noted: %s", self.url, error)

    def state(self) -> dict[str, float]:
        """Its newest checkpoint and its history, as metrics."""
        uploads, history = self.checkpoints.uploads, self.history
        state = {
            "checkpoints": uploads.committed,
            "checkpoint_failures": uploads.failures,
            "checkpoint_upload_seconds": uploads.seconds,
            "checkpoint_bytes": uploads.size_bytes,
            "restarts": history.restarts,
            "updates_lost": history.updates_lost,
            "preemption_notices": history.preemption_notices,
        }
        return state | ({"checkpoint_timestamp_seconds": uploads.committed_at} if uploads.committed_at else {})

    def write_targets(self, addresses: list[str]) -> None:
        """Says where the processes of this run serve their metrics."""
        self._may_write()
        self.store.put("targets.json", exporter.targets(addresses, "deblur"))

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """One more line; numbers that are not finite become null, which JSON knows."""
        self._lines.append({k: None if _not_finite(v) else v for k, v in metrics.items()})

    def write_metrics(self) -> None:
        """Makes the lines so far visible. Object stores cannot append: the file is written whole."""
        self._may_write()
        self.store.put("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self._lines).encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines written so far. Raises InputError naming the place where there are none."""
        place = join(self.url, "metrics.jsonl")
        try:
            lines = [json.loads(line) for line in self.store.get("metrics.jsonl").decode().splitlines()]
        except NotFound as error:
            raise InputError(f"{place}: not there; name a run that has reported at least once") from error
        except ValueError as error:
            raise InputError(f"{place}: not one JSON object per line ({error})") from error
        if not lines:
            raise InputError(f"{place}: empty; name a run that has reported at least once")
        return lines

    def write_sample(self, images_seen: int, blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray) -> None:
        """One PNG with the three uint8 [H, W, 3] side by side."""
        strip = np.concatenate([blurred, restored, sharp], axis=1)
        self.store.put(f"samples/{images_seen:012d}.png", pictures.encode_png(strip))


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
