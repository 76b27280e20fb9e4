"""The files of a run, under the root of runs (a folder or s3://bucket/prefix).

{runs}/{run}/recipe.json      what is learned
             origin.json      from what: digests of the dataset and of the VGG weights
             checkpoints/     see cluster/storage/checkpoints.py
             metrics.jsonl    one line per report
             samples/         {images_seen}.png, blurred | restored | sharp
             tensorboard/     the same metrics and samples as event files, if the root is a folder
             history.json     progress, restarts and preemption notices of the run
             targets.json     scrape targets of its processes, for Prometheus
             lease/           see cluster/storage/lease.py
"""

import contextlib
import json
import logging
import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from cluster import exporter
from cluster.errors import DamagedError, InputError, NotFound
from cluster.storage import Retry, join, open_store
from cluster.storage.checkpoints import Checkpoints
from cluster.storage.lease import Lease, check_lease
from cluster.storage.records import read_record
from cluster.sync import ClusterState, Rank, Sync
from deblur.config import recipes
from deblur.config.recipes import Recipe
from deblur.data import pictures
from deblur.training.config import WorkerConfig
from deblur.training.tensorboard import TensorBoard

# For history.json, which the next write replaces: not worth a long wait.
_HISTORY_RETRY = Retry(limit_s=5.0, stall_s=5.0)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run learns from."""

    dataset: str
    features: str
    """Empty without a content loss."""
    initial: str = ""
    """Of the generator's weights that it starts from; empty for fresh ones."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Restart and preemption history of a run. Updates lost are those made again after a restart."""

    images_seen: int = 0
    """Progress of the newest start, checkpointed or not."""
    restarts: int = 0
    updates_lost: int = 0
    preemption_notices: int = 0
    computation: str = ""
    """Precision, memory format and kind of device of the newest start."""


class Run:
    """The files of one run. Commits are made only while `lease` is held, if there is one."""

    writes = True
    """Whether this process writes the run: the driver and rank 0."""

    def __init__(self, url: str, keep: int = 2, *, lease: Lease | None = None, retry: Retry | None = None) -> None:
        self.url = url
        self.name = url.rstrip("/").rpartition("/")[2]
        self.lease = lease
        self.store = open_store(url, retry)
        self.checkpoints = Checkpoints(self.store, keep, self._check_lease)
        self.history = History()
        self._lines: list[dict[str, Any]] = []
        self._board: TensorBoard | None = None
        self._history_store = open_store(url, _HISTORY_RETRY)
        self._history_thread = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._history_write: Future[None] | None = None

    def _check_lease(self) -> None:
        if self.lease is not None:
            check_lease(self.store, self.lease)

    # ---- what the driver does

    def images_seen(self) -> int:
        """Of the newest committed checkpoint; 0 before the first."""
        return max((checkpoint.images_seen for checkpoint in self.checkpoints.list()), default=0)

    def is_finished(self, total_images: int) -> bool:
        """Whether a checkpoint of the end exists and verifies."""
        return self.images_seen() >= total_images and (
            (newest := self.checkpoints.newest()) is not None and newest[0].images_seen >= total_images
        )

    def check(self, recipe: Recipe, origin: Origin) -> None:
        """Raises InputError with the differences if the run was started with another recipe or data."""
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
        if not (old_recipe := self.recipe()):
            return []
        old = asdict(self.origin() or origin)
        moved = [f"{k}: {old[k]} -> {v}" for k, v in asdict(origin).items() if old[k] != v]
        return recipes.difference(old_recipe, recipe) + moved

    def recipe(self) -> Recipe | None:
        """What the run was started with; None before its first start.

        If its record is damaged, the newest checkpoint's. Raises InputError if there is none.
        """
        place = join(self.url, "recipe.json")
        try:
            return recipes.from_json(self.store.get("recipe.json"), place)
        except NotFound:
            return None
        except InputError as error:
            if (kept := self.checkpoints.newest_part("recipe.json")) is None:
                raise
            _log.warning("damaged recipe, taking the newest checkpoint's: %s", error)
            return recipes.from_json(kept, f"{place} of the newest checkpoint")

    def origin(self) -> Origin | None:
        """What the run learned from until now; None before its first start, or if its record is damaged."""
        try:
            return read_record(Origin, self.store.get("origin.json"), join(self.url, "origin.json"))
        except NotFound:
            return None
        except DamagedError as error:
            _log.warning("damaged origin: whether this is the run's dataset cannot be checked: %s", error)
            return None

    def write_targets(self, addresses: list[str]) -> None:
        """Writes the scrape targets of the run's processes; empty addresses are left out."""
        self._check_lease()
        self.store.put("targets.json", exporter.targets(filter(None, addresses), "deblur"))

    # ---- what rank 0 does

    def resume(self, images_seen: int, batch_size: int, computation: str) -> None:
        """Loads the metrics and the history of the run, which continues at `images_seen`.

        Metrics of updates that were lost are dropped. Logs `computation`, and a change of it: bits then differ from
        those of an undisturbed run.
        """
        self.log(f"computing in {computation}, threads per rank: {torch.get_num_threads()}")
        self._lines = self.metrics_until(images_seen)
        self._board = TensorBoard(self.store, images_seen)
        old = self._read_history()
        if old:
            lost = max(0, old.images_seen - images_seen) // batch_size
            old = replace(old, restarts=old.restarts + 1, updates_lost=old.updates_lost + lost)
        if old and old.computation not in ("", computation):
            self.log(f"earlier starts computed in {old.computation}: bits now differ; --precision sets it")
        self.history = replace(old or History(), images_seen=images_seen, computation=computation)
        self._write_history(self.history)

    def _read_history(self) -> History | None:
        try:
            return read_record(History, self.store.get("history.json"), join(self.url, "history.json"))
        except NotFound:
            return None
        except DamagedError as error:
            _log.warning("damaged history, starting a new one: %s", error)
            return None

    def record_progress(self, images_seen: int, preemption_notice: bool) -> None:
        """Records in history.json how far the run is; in the background."""
        notices = self.history.preemption_notices + preemption_notice
        self.history = replace(self.history, images_seen=images_seen, preemption_notices=notices)
        if self._history_write is None or self._history_write.done():
            self._history_write = self._history_thread.submit(self._write_history, self.history)

    def _write_history(self, history: History) -> None:
        # No commit: nothing depends on it, and the next write by the holder of the lease replaces it.
        try:
            self._history_store.put("history.json", json.dumps(asdict(history), indent=2).encode())
        except Exception as error:  # training does not depend on it
            _log.warning("%s: failed to write history.json: %s", self.url, error)

    def cluster_state(self, sync: Sync) -> ClusterState:
        """What the scheduler wants to know. All ranks must call it."""
        checkpoints = self.checkpoints
        return ClusterState(
            sync.seconds_to_preemption(),
            checkpoints.uploads.seconds,
            checkpoints.uploading,
            sync.can_scale_up,
            sync.interrupted(),
        )

    def log(self, text: str) -> None:
        """Prints a line that starts with the run's name."""
        with contextlib.suppress(BrokenPipeError):  # training goes on when nobody reads
            print(f"{self.name}: {text}", flush=True)

    def add_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Adds a report; numbers that are not finite become null, which JSON has."""
        self._lines.append({k: None if _is_not_finite(v) else v for k, v in metrics.items()})
        if self._board:
            self._board.add_report(self._lines[-1])

    def save(self, images_seen: int, parts: Mapping[str, bytes], score: float | None) -> None:
        """Writes the metrics so far and starts the upload of a checkpoint."""
        self._check_lease()
        # Object stores cannot append: the file is written whole.
        self.store.put("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self._lines).encode())
        self.checkpoints.save(images_seen, parts, score)

    def write_sample(self, images_seen: int, blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray) -> None:
        """One PNG with the three uint8 [H, W, 3] side by side."""
        strip = np.concatenate([blurred, restored, sharp], axis=1)
        self.store.put(f"samples/{images_seen:012d}.png", pictures.encode_png(strip))
        if self._board:
            self._board.add_sample(images_seen, strip)

    def close(self) -> None:
        """Waits for the last upload and writes the rest of the records. Raises what the upload raised."""
        if self._board:
            self._board.close()
        self.checkpoints.wait()
        self._history_thread.submit(self._write_history, self.history).result()

    # ---- what anybody reads

    def state(self) -> dict[str, float]:
        """The newest checkpoint and the history, as metrics."""
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

    def metrics_until(self, images_seen: int) -> list[dict[str, Any]]:
        """The reports up to there; none before the first."""
        return [line for line in self._metrics() if line["images_seen"] <= images_seen]

    def read_metrics(self) -> list[dict[str, Any]]:
        """All reports written so far. Raises InputError naming the file if there are none."""
        if not (lines := self._metrics()):
            place = join(self.url, "metrics.jsonl")
            raise InputError(f"{place}: has no reports; name a run that has reported at least once")
        return lines

    def _metrics(self) -> list[dict[str, Any]]:
        """All reports that can be read: a power cut may have torn a line."""
        try:
            lines = self.store.get("metrics.jsonl").decode(errors="replace").splitlines()
        except NotFound:
            return []
        found = [report for line in lines if (report := _report(line))]
        if len(found) < len(lines):
            place = join(self.url, "metrics.jsonl")
            _log.warning("%s: left out %d damaged lines of %d", place, len(lines) - len(found), len(lines))
        return found


class ReadOnlyRun(Run):
    """The run on ranks other than 0: it reads checkpoints; what rank 0 writes, it does not."""

    writes = False

    def resume(self, images_seen: int, batch_size: int, computation: str) -> None: ...

    def record_progress(self, images_seen: int, preemption_notice: bool) -> None: ...

    def log(self, text: str) -> None: ...

    def add_metrics(self, metrics: Mapping[str, Any]) -> None: ...

    def save(self, images_seen: int, parts: Mapping[str, bytes], score: float | None) -> None: ...

    def write_sample(self, images_seen: int, blurred: np.ndarray, restored: np.ndarray, sharp: np.ndarray) -> None: ...

    def write_targets(self, addresses: list[str]) -> None: ...

    def close(self) -> None: ...

    def state(self) -> dict[str, float]:
        return {}


def open_run(config: WorkerConfig, rank: Rank) -> Run:
    """The run as a rank sees it: rank 0 writes it."""
    kind = Run if rank.rank == 0 else ReadOnlyRun
    return kind(config.run.run_url, config.run.keep, lease=config.lease, retry=config.run.retry)


def _report(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is damaged."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and type(found.get("images_seen")) is int else None


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
