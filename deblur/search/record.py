"""The record of a search: its trials, how far each came, and which is best.

{runs}/{search}/search.json      the settings of the search, and of each trial values, curve, state and reason
               best.json        the best recipe so far, for `deblur.train --recipe`
               report.html      and report.png: see deblur/search/report.py
               {search}-NNN/    the run of a trial
               lease/           see cluster/storage/lease.py
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.errors import InputError, NotFound
from cluster.storage import Retry, join, open_store
from cluster.storage.lease import Holder, check_lease
from deblur.config.recipes import Recipe, flat, with_flags
from deblur.search.config import Metric, TuneSettings
from deblur.search.space import Space, Values, describe
from deblur.training.run import Origin

VERSION = 2  # of search.json; version 1, which had no such field, drew its trials by other means
State = Literal["running", "finished", "stopped", "failed"]

# The metrics of a validation that the record keeps.
POINT = ("images_seen", "images_per_second", "validation_psnr", "validation_ssim", "validation_blurred_psnr")


@dataclass(kw_only=True)
class Trial:
    """One configuration and its outcome. An interrupted trial stays "running" until the search resumes."""

    number: int
    values: Values
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
        return self.curve[-1][f"validation_{metric}"] if self.curve else None

    def add(self, metrics: Mapping[str, Any]) -> bool:
        """Adds a validation; returns False for one that a restarted trial repeats."""
        if metrics["images_seen"] <= self.images_seen:
            return False
        self.curve.append({name: metrics[name] for name in POINT if metrics.get(name) is not None})
        self.ranks, self.threads_per_rank = metrics["ranks"], metrics["threads_per_rank"]
        return True


class Search:
    """A search with its trials and its files, which only the holder of its lease writes."""

    def __init__(self, settings: TuneSettings, space: Space, first: Sequence[Values], origin: Origin) -> None:
        """Reads the record, if there is one. The settings must be complete; `first` are values that are not drawn.

        Raises InputError naming the difference if the search was started with other settings.
        """
        self.settings, self.space, self.first = settings, space, first
        self.name = settings.search or ""
        self.url = join(settings.runs or "", self.name)
        self.score_key = f"validation_{settings.metric}"
        self.store = open_store(self.url, Retry(limit_s=settings.storage_wait_s))
        fingerprint = {  # what trials share, how they are drawn and when they stop
            "recipe": asdict(settings.recipe),
            "origin": asdict(origin),
            "space": {name: describe(distribution) for name, distribution in space.items()},
            "first": first,
            **{name: getattr(settings, name) for name in ("sampler", "metric", "grace_images", "reduction")},
        }
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self.trials: list[Trial] = []
        self.read()

    def name_of(self, trial: Trial) -> str:
        """The name of a trial's run."""
        return f"{self.name}-{trial.number:03d}"

    def recipe_of(self, trial: Trial) -> Recipe:
        """The recipe that a trial trains."""
        return with_flags(self.settings.recipe, trial.values)

    def ranked(self) -> list[Trial]:
        """The trials that have a score, best first."""
        scored = [trial for trial in self.trials if trial.curve]
        return sorted(scored, key=lambda trial: trial.curve[-1][self.score_key], reverse=True)

    def best(self) -> Trial | None:
        """The best of the finished trials; the others' scores are not of the whole budget."""
        return next((trial for trial in self.ranked() if trial.state == "finished"), None)

    def running(self) -> list[Trial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials if trial.state == "running"]

    def count_left(self) -> int:
        """How many trials have not ended, or not started."""
        return len(self.running()) + max(0, self.settings.trials - len(self.trials))

    def write(self, holder: Holder) -> None:
        """Writes search.json and best.json. Raises InputError if another process has taken over the lease."""
        check_lease(self.store, holder.lease)
        trials = [{"name": self.name_of(trial), **asdict(trial)} for trial in self.trials]
        files = {"search.json": {"version": VERSION, "search": self._fingerprint, "trials": trials}}
        if best := self.best():
            summary = {name: getattr(best, name) for name in ("images_seen", "ranks", "threads_per_rank")}
            scores = {name: best.curve[-1][name] for name in ("validation_psnr", "validation_ssim")}
            recipe = asdict(self.recipe_of(best))
            files["best.json"] = {"recipe": recipe, "trial": self.name_of(best), **summary, **scores}
        for name, content in files.items():
            self.store.put(name, json.dumps(content, indent=2).encode())

    def read(self) -> None:
        """Reads the trials again; with --retry-failed, failed ones become running ones."""
        place = join(self.url, "search.json")
        try:
            content = json.loads(self.store.get("search.json"))
            version, old = content.get("version", 1), flat(content["search"])
            trials = [Trial(**{k: v for k, v in trial.items() if k != "name"}) for trial in content["trials"]]
        except NotFound:
            return
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{place} is not the record of a search ({error!r}); choose another --search") from error
        new, problem = flat(self._fingerprint), ""
        changes = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
        if version != VERSION:
            problem = f"is of version {version}, and only version {VERSION} can be resumed"
        elif changes:
            problem = f"was started with other settings ({'; '.join(changes)}); restore them"
        if problem:
            raise InputError(f"{place} {problem}, or choose another --search")
        for trial in trials:
            if trial.state == "failed" and self.settings.retry_failed:
                trial.state, trial.reason = "running", ""
        self.trials = trials
