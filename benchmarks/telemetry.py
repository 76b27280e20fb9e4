"""The share of an update's time that metrics take: counting, reporting, being scraped, noting how far the run is.

python -m benchmarks.telemetry --json

The cost is that of the same calls around an update that does nothing; the time of a real update is measured in turns
with it, in one process. As a check, updates with metrics and without take turns, too: their ratio has the noise of the
machine, which is larger than the share.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from typing import Any

import torch
import tyro
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.machine import machine
from cluster.storage import join
from cluster.sync import Intervals, Rank, Sync
from deblur import recipe as recipes
from deblur.models.vgg import load_features
from deblur.networks import build
from deblur.recipe import Recipe
from deblur.run import Run
from deblur.telemetry import Meter, numbers_of
from deblur.update import TERMS

SCRAPE_S = 15.0  # as Kubernetes' operators have it
_INTERVALS = Intervals(validate_images=1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = "demo"
    """Preset. A short update is the hard case."""
    crop: int | None = None
    """Side of the pictures; else the recipe's."""
    updates: int = 20
    """Per turn."""
    rounds: int = 7
    """Turns with metrics, without, and of metrics alone."""
    store: str | None = None
    """Folder or s3://bucket/prefix of the run; else a temporary folder."""
    json: bool = False
    """Print one line of JSON at the end."""


def measure(settings: Settings, url: str) -> dict[str, Any]:
    """The figures, medians over rounds."""
    recipe = recipes.PRESETS[settings.recipe]()
    recipe = replace(recipe, data=replace(recipe.data, crop=settings.crop or recipe.data.crop))
    rank = Rank(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    run = Run(url)
    run.resume(0, recipe.data.batch_size)
    numbers = numbers_of(run.name, "0")
    counters = {"read_bytes": 1, "storage_retries": 0, "resumed_reads": 0, "bad_samples": 0}
    meter = Meter(rank, 0, recipe.data.batch_size, lambda: counters, run.state, numbers)
    updater = build(recipe, load_features(recipe.loss.features, "random", None).to(rank.device), rank)
    batch, nothing = _batch(recipe, rank.device), torch.zeros(len(TERMS), device=rank.device)

    def with_metrics(update: Callable[..., torch.Tensor], count: int) -> None:
        for inputs in meter.timed(repeat(batch, count)):
            meter.add(update(*inputs, meter.lap))
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
    turns: dict[str, list[float]] = {"with": [], "without": [], "alone": []}
    for _ in range(settings.rounds):
        turns["without"].append(_seconds(without_metrics) / settings.updates)
        turns["with"].append(_seconds(lambda: with_metrics(updater.update, settings.updates)) / settings.updates)
        turns["alone"].append(_seconds(lambda: with_metrics(update_of_nothing, 1000)) / 1000)
    registry = CollectorRegistry()
    registry.register(numbers)
    costs = {
        "update": statistics.median(turns["alone"]),
        "report": _median_seconds(lambda: meter.report(0, Sync(), {"epoch": 0})),
        "scrape": _median_seconds(lambda: generate_latest(registry)),
        # Beside training: what counts are the processor's seconds, not the waiting.
        "note": _median_seconds(lambda: run._note(run.history), time.thread_time),
    }
    update_s = statistics.median(turns["without"])
    share = costs["update"] / update_s + costs["report"] / _INTERVALS.report_s + costs["scrape"] / SCRAPE_S
    return {
        "share_of_time": round(share + costs["note"] / _INTERVALS.meeting_s, 6),
        "seconds_per_update": round(update_s, 5),
        **{f"microseconds_per_{name}": round(1e6 * seconds, 1) for name, seconds in costs.items()},
        "with_to_without": round(statistics.median(turns["with"]) / update_s, 4),
        "with_to_without_of_each_round": [
            round(a / b, 4) for a, b in zip(turns["with"], turns["without"], strict=True)
        ],
    }


def _batch(recipe: Recipe, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (recipe.data.batch_size, 3, recipe.data.crop, recipe.data.crop)
    mixes = torch.full((recipe.loss.critic_updates, recipe.data.batch_size, 1, 1, 1), 0.5, device=device)
    return torch.rand(shape, device=device), torch.rand(shape, device=device), mixes


def _seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


def _median_seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    return statistics.median(_seconds(work, clock) for _ in range(50))


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m benchmarks.telemetry")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(settings, join(settings.store or folder, "benchmark"))
    for name, value in figures.items():
        print(f"{name:<30} {value}")
    if settings.json:
        print(json.dumps({"benchmark": "telemetry", "machine": machine(), "settings": asdict(settings)} | figures))


if __name__ == "__main__":
    main()
