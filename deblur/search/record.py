"""The record of a search: what its trials are, how far each came, which is best.

{runs}/{search}/search.json      what is searched, and every trial: configuration, curve, state, reason
               best.json        the best recipe so far, for `deblur.train --recipe`
               report.html      and report.png: see deblur/search/report.py
               {search}-NNN/    the run of a trial
               lease/           see cluster/storage/lease.py
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.errors import InputError, NotFound
from cluster.storage import Retry, join, open_store
from cluster.storage.lease import Holder, check_lease
from deblur.config import recipes
from deblur.config.recipes import Recipe, flat
from deblur.search.space import Value, applied

Metric = Literal["psnr", "ssim"]
State = Literal["running", "finished", "stopped", "failed"]

# What is kept of each validation.
POINT = ("images_seen", "images_per_second", "validation_psnr", "validation_ssim", "validation_blurred_psnr")


@dataclass(kw_only=True)
class Trial:
    """One configuration and what came of it. Of a trial that was interrupted the state is still "running"."""

    number: int
    values: dict[str, Value]
    state: State = "running"
    reason: str = ""
    """Why it failed, in one line."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One point per validation, as images are seen."""
    ranks: int = 0
    threads_per_rank: int = 0

    @property
    def images_seen(self) -> int:
        """At its newest validation."""
        return int(self.curve[-1]["images_seen"]) if self.curve else 0

    @property
    def images_per_second(self) -> float | None:
        """The median over its validations."""
        speeds = [point["images_per_second"] for point in self.curve if "images_per_second" in point]
        return statistics.median(speeds) if speeds else None

    def score(self, metric: Metric) -> float | None:
        """What it reached: its newest, not its best, which would reward noise."""
        return self.curve[-1].get(f"validation_{metric}") if self.curve else None

    def add(self, metrics: Mapping[str, Any]) -> bool:
        """Takes up what a validation reported. A start that went back makes some validations again: False for those."""
        if metrics["images_seen"] <= self.images_seen:
            return False
        self.curve.append({name: metrics[name] for name in POINT if metrics.get(name) is not None})
        self.ranks, self.threads_per_rank = metrics["ranks"], metrics["threads_per_rank"]
        return True


class Search:
    """The trials of a search and their files. Only the driver writes, while it holds the search."""

    def __init__(
        self, url: str, recipe: Recipe, metric: Metric, settings: Mapping[str, Any], retry: Retry | None = None
    ) -> None:
        """`settings` are what must be the same when a search goes on, as plain values. Reads what is there.

        Raises InputError with the difference where another search has this name.
        """
        self.url, self.recipe, self.metric = url, recipe, metric
        self.name = url.rstrip("/").rpartition("/")[2]
        self.store = open_store(url, retry)
        self._settings = json.loads(json.dumps(settings))
        self.trials = self._read()

    def name_of(self, trial: Trial) -> str:
        """The name of a trial's run, which is the label of its metrics."""
        return f"{self.name}-{trial.number:03d}"

    def recipe_of(self, trial: Trial) -> Recipe:
        """What a trial learns."""
        return applied(self.recipe, trial.values)

    def named(self, name: str) -> Trial:
        """The trial of a name."""
        (trial,) = (trial for trial in self.trials if self.name_of(trial) == name)
        return trial

    def ranked(self) -> list[Trial]:
        """The trials that have a score, best first."""
        scored = [trial for trial in self.trials if trial.score(self.metric) is not None]
        return sorted(scored, key=lambda trial: -(trial.score(self.metric) or 0.0))

    def best(self) -> Trial | None:
        """The best of those that were trained to the end: no other score is one of the whole budget."""
        return next((trial for trial in self.ranked() if trial.state == "finished"), None)

    def write(self, holder: Holder) -> None:
        """Writes search.json and best.json. Raises InputError where another start has taken the search over."""
        check_lease(self.store, holder.lease)
        trials = [{"name": self.name_of(trial), **asdict(trial)} for trial in self.trials]
        self.store.put("search.json", _json({"search": self._settings, "trials": trials}))
        if best := self.best():
            self.store.put("best.json", _json(self._told_of(best)))

    def _told_of(self, trial: Trial) -> dict[str, Any]:
        """What best.json says: the recipe, and what else its numbers depend on."""
        return {
            "recipe": json.loads(recipes.to_json(self.recipe_of(trial))),
            "trial": self.name_of(trial),
            "images_seen": trial.images_seen,
            "ranks": trial.ranks,
            "threads_per_rank": trial.threads_per_rank,
            "validation_psnr": trial.score("psnr"),
            "validation_ssim": trial.score("ssim"),
        }

    def _read(self) -> list[Trial]:
        place = join(self.url, "search.json")
        try:
            found = json.loads(self.store.get("search.json"))
            trials = [Trial(**{k: v for k, v in told.items() if k != "name"}) for told in found["trials"]]
            old = flat(found["search"])
        except NotFound:
            return []
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{place}: not the record of a search ({error!r}); choose another --search") from error
        new = flat(self._settings)
        changes = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
        if changes:
            raise InputError(
                f"{place}: this search was started with other settings ({'; '.join(changes)}); choose another "
                "--search, or the old settings"
            )
        return trials


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=2).encode()
