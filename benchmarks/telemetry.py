"""Overhead of metrics relative to an update: counting, reporting, scrapes, and writing history.json.

python -m benchmarks.telemetry --json

The cost is measured around an update that does nothing, alternating with real updates in one process. As a check,
updates with and without metrics alternate, too; the noise of their ratio exceeds the overhead.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from prometheus_client import generate_latest

from benchmarks import command
from benchmarks.command import option
from benchmarks.timing import alternate, pick_device
from benchmarks.update import batch_of, updater_of
from cluster.storage import join
from cluster.sync import Intervals, Rank, Sync
from deblur.config import presets
from deblur.training.meter import Meter
from deblur.training.metrics import run_metrics
from deblur.training.run import Run
from deblur.training.update import TERMS

SCRAPE_S = 15.0  # the default of Kubernetes' operators
_INTERVALS = Intervals(validate_images=1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = option("demo", "Preset; a short update is the worst case.")
    crop: int | None = option(None, "Side of the pictures; default: the recipe's.")
    updates: int = option(20, "Updates per round.")
    rounds: int = option(7, "Rounds, each with metrics, without, and metrics alone.")
    store: str | None = option(None, "Folder or s3://bucket/prefix of the run; default: a temporary folder.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(settings, Run(join(settings.store or folder, "benchmark")))


def _measure(settings: Settings, run: Run) -> dict[str, Any]:
    recipe = presets.PRESETS[settings.recipe]()
    recipe = replace(recipe, data=replace(recipe.data, crop=settings.crop or recipe.data.crop))
    rank = Rank(device=pick_device())
    run.resume(0, recipe.data.batch_size, "float32, on cpu")
    metrics = run_metrics(run.name, "0")
    counters = {"read_bytes": 1, "storage_retries": 0, "resumed_reads": 0, "bad_samples": 0}
    meter = Meter(rank, 0, recipe.data.batch_size, lambda: counters, run.state, metrics)
    updater = updater_of(recipe, rank.device)
    batch, nothing = batch_of(recipe, rank.device), torch.zeros(len(TERMS), device=rank.device)

    def with_metrics(update: Callable[..., torch.Tensor], count: int) -> None:
        for inputs in meter.timed(repeat(batch, count)):
            meter.add(update(*inputs, meter.on_phase_end))
        meter.nonfinite_in_a_row()

    def update_of_nothing(*inputs: Any) -> torch.Tensor:
        for part in ("generator", "critic", "generator"):
            inputs[-1](part)
        return nothing

    def without_metrics() -> None:
        for inputs in repeat(batch, settings.updates):
            terms = updater.update(*inputs)
        terms.cpu()

    with_metrics(updater.update, 3)  # warms up
    works = {
        "without": without_metrics,
        "with": lambda: with_metrics(updater.update, settings.updates),
        "alone": lambda: with_metrics(update_of_nothing, 1000),
    }
    turns = alternate(works, settings.rounds)
    costs = {
        "update": statistics.median(turns["alone"]) / 1000,
        "report": _median_seconds(lambda: meter.report(0, Sync(), {"epoch": 0})),
        "scrape": _median_seconds(lambda: generate_latest(metrics.registry)),
        # In the background: CPU seconds count, not waiting.
        "note": _median_seconds(lambda: run._write_history(run.history), time.thread_time),
    }
    update_s = statistics.median(turns["without"]) / settings.updates
    share = costs["update"] / update_s + costs["report"] / _INTERVALS.report_s + costs["scrape"] / SCRAPE_S
    return {
        "share_of_time": round(share + costs["note"] / _INTERVALS.sync_s, 6),
        "seconds_per_update": round(update_s, 5),
        **{f"microseconds_per_{name}": round(1e6 * seconds, 1) for name, seconds in costs.items()},
        "with_to_without": round(statistics.median(turns["with"]) / statistics.median(turns["without"]), 4),
        "with_to_without_of_each_round": [
            round(a / b, 4) for a, b in zip(turns["with"], turns["without"], strict=True)
        ],
    }


def _median_seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    def once() -> float:
        start = clock()
        work()
        return clock() - start

    return statistics.median(once() for _ in range(50))


if __name__ == "__main__":
    command.run("telemetry", __doc__, Settings, measure)
