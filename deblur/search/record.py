"""The record of a search: its trials, how far each came, and which is best.

{runs}/{search}/search.json      the settings of the search, and of each trial values, curve, state and reason
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

VERSION = 2  # of search.json; version 1, which had no such field, drew its trials by other means
Metric = Literal["psnr", "ssim"]
State = Literal["running", "finished", "stopped", "failed"]

# The metrics of a validation that the record keeps.
POINT = ("images_seen", "images_per_second", "validation_psnr", "validation_ssim", "validation_blurred_psnr")


@dataclass(kw_only=True)
class Trial:
    """One configuration and its outcome. An interrupted trial stays "running" until the search resumes."""

    number: int
    values: Mapping[str, Value]
    state: State = "running"
    reason: str = ""
    """Why it failed, in one line."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """One point per validation, in order of images seen."""
    ranks: int = 0
    threads_per_rank: int = 0

    @property
    def images_seen(self) -> int:
        """At the newest validation."""
        return int(self.curve[-1]["images_seen"]) if self.curve else 0

    @property
    def images_per_second(self) -> float | None:
        """The median over the validations."""
        speeds = [point["images_per_second"] for point in self.curve if "images_per_second" in point]
        return statistics.median(speeds) if speeds else None

    def score(self, metric: Metric) -> float | None:
        """The newest value, not the best one, which would reward noise."""
        return self.curve[-1].get(f"validation_{metric}") if self.curve else None

    def add(self, metrics: Mapping[str, Any]) -> bool:
        """Adds a validation; returns False for one that a restarted trial repeats."""
        if metrics["images_seen"] <= self.images_seen:
            return False
        self.curve.append({name: metrics[name] for name in POINT if metrics.get(name) is not None})
        self.ranks, self.threads_per_rank = metrics["ranks"], metrics["threads_per_rank"]
        return True


class Search:
    """The trials of a search and their files, which only the holder of the search's lease writes."""

    def __init__(
        self, url: str, recipe: Recipe, metric: Metric, settings: Mapping[str, Any], retry: Retry | None = None
    ) -> None:
        """Reads the record, if there is one. `settings` (JSON values) must not change when a search resumes.

        Raises InputError naming the difference if they have.
        """
        self.url, self.recipe, self.metric = url, recipe, metric
        self.name = url.rstrip("/").rpartition("/")[2]
        self.store = open_store(url, retry)
        self._settings = json.loads(json.dumps(settings))
        self.trials = self._read()

    def name_of(self, trial: Trial) -> str:
        """The name of a trial's run, which is also the label of its metrics."""
        return f"{self.name}-{trial.number:03d}"

    def recipe_of(self, trial: Trial) -> Recipe:
        """The recipe that a trial trains."""
        return applied(self.recipe, trial.values)

    def scored(self) -> list[tuple[float, Trial]]:
        """The trials that have a score, with it, best first."""
        scores = [(trial.score(self.metric), trial) for trial in self.trials]
        return sorted(((score, trial) for score, trial in scores if score is not None), key=lambda pair: -pair[0])

    def ranked(self) -> list[Trial]:
        """The trials that have a score, best first."""
        return [trial for _, trial in self.scored()]

    def best(self) -> Trial | None:
        """The best of the finished trials; the others' scores are not of the whole budget."""
        return next((trial for trial in self.ranked() if trial.state == "finished"), None)

    def write(self, holder: Holder) -> None:
        """Writes search.json and best.json. Raises InputError if another process has taken over the lease."""
        check_lease(self.store, holder.lease)
        trials = [{"name": self.name_of(trial), **asdict(trial)} for trial in self.trials]
        self._put("search.json", {"version": VERSION, "search": self._settings, "trials": trials})
        if best := self.best():
            summary = {name: getattr(best, name) for name in ("images_seen", "ranks", "threads_per_rank")}
            scores = {"validation_psnr": best.score("psnr"), "validation_ssim": best.score("ssim")}
            recipe = json.loads(recipes.to_json(self.recipe_of(best)))
            self._put("best.json", {"recipe": recipe, "trial": self.name_of(best), **summary, **scores})

    def _put(self, name: str, content: Any) -> None:
        self.store.put(name, json.dumps(content, indent=2).encode())

    def _read(self) -> list[Trial]:
        place = join(self.url, "search.json")
        try:
            content = json.loads(self.store.get("search.json"))
            version, old = content.get("version", 1), flat(content["search"])
            trials = [Trial(**{k: v for k, v in trial.items() if k != "name"}) for trial in content["trials"]]
        except NotFound:
            return []
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{place} is not the record of a search ({error!r}); choose another --search") from error
        if version != VERSION:
            raise InputError(
                f"{place} is of version {version}, and only version {VERSION} can be resumed; choose another --search"
            )
        new = flat(self._settings)
        changes = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
        if changes:
            raise InputError(
                f"{place} was started with other settings ({'; '.join(changes)}); restore them, or choose another "
                "--search"
            )
        return trials
