"""A search from its settings to its end: which trials run, and what the record keeps of each."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from cluster.storage import Retry, join
from cluster.storage.lease import Holder, acquire_lease
from deblur.config import recipes
from deblur.config.cli import SharedSettings
from deblur.data.dataset import Dataset
from deblur.search import report
from deblur.search.record import POINT, Metric, Search, Trial
from deblur.search.space import Space, Values, applied, contains, describe, extremes, read_points, space_of, value_of
from deblur.search.study import Study
from deblur.search.table import LiveTable, counts, table
from deblur.training.job import TrainSettings, check_access, dataset_line, origin_of, resolve_inputs, train
from deblur.training.loop import plan_of, total_images
from deblur.training.run import Origin, Run

FIRST_RUNG = 16  # by default ASHA first compares trials after this fraction of the budget
_SHARED = {field.name for field in fields(SharedSettings)} - {"check", "recipe"}  # passed to the trials unchanged


@dataclass(frozen=True, kw_only=True)
class TuneSettings(SharedSettings):
    """What is searched and where. Fields of the recipe that are set by flags are not searched."""

    search: str | None = None
    """Name of the search; default: from the recipe and the dataset. The same name resumes the same search."""
    trials: int = 20
    """Number of configurations to try; a larger number later extends the search."""
    nodes_per_trial: int = 1
    """Nodes of each trial, with all their GPUs."""
    trials_per_node: int = 1
    """Trials that share a node, each with its part of the GPUs and CPUs."""
    at_once: int | None = None
    """Concurrent trials; default: as many as fit into the cluster at the start. More wait for new nodes."""
    space: tuple[str, ...] = ()
    """NAME=LOW:HIGH, NAME=A,B or NAME=VALUE for fields of the recipe (by the names of their flags), or .json files."""
    points: str | None = None
    """A .json file with a list of {name: value}, tried before configurations are drawn."""
    sampler: Literal["random", "tpe"] = "random"
    """How Optuna draws configurations: uniformly, or near good ones (tree-structured Parzen estimator)."""
    metric: Metric = "psnr"
    """Metric on the validation split by which trials are compared."""
    grace_images: int | None = None
    """Images before a trial can be stopped (ASHA's first rung); default: a sixteenth of the budget."""
    reduction: float = 4.0
    """Of the trials at a rung (grace, grace x reduction, ...) one in this many continues; a whole number."""
    retry_failed: bool = False
    """Retry failed trials."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trials", "nodes_per_trial", "trials_per_node", "at_once", "grace_images"):
            self.at_least_one(name)
        if self.nodes_per_trial > 1 and self.trials_per_node > 1:
            raise InputError(
                f"--nodes-per-trial {self.nodes_per_trial} with --trials-per-node {self.trials_per_node}: a trial has "
                "either several nodes or a part of one; leave one of the two at 1"
            )
        if self.reduction < 2 or self.reduction % 1:
            raise InputError(f"--reduction is {self.reduction:g}; it must be a whole number of at least 2")

    @property
    def placement(self) -> Placement:
        """Where the ranks of one trial go."""
        return Placement(
            nodes=self.nodes_per_trial,
            ranks_per_node=self.ranks_per_node,
            groups_per_node=self.trials_per_node,
            wait_s=self.wait_s,
            shared_cluster=True,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A validated search; its settings are complete."""

    settings: TuneSettings
    space: Space
    first: Sequence[Values]
    """Configurations that are not drawn: the recipe's own, then the points."""
    images: int
    """The budget of each trial."""
    dataset: Dataset
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """What the process of one trial receives."""

    name: str
    settings: TrainSettings
    placement: Placement


def run_search(settings: TuneSettings, given: Sequence[str] = ()) -> str | None:
    """Runs or resumes a search and prints its best recipe; returns an error message if it was interrupted."""
    plan = prepare(settings, given)
    search = tune(plan)
    if not settings.check and not is_done(search, settings):
        return f"{search.url}: interrupted; the same command resumes the search"
    if best := search.best():
        print(f"best     {search.name_of(best)}: {best.values}")
        print(f"         python -m deblur.train --recipe {join(search.url, 'best.json')}")
        print(f"         {join(search.url, 'report.html')}")
    return None


def prepare(settings: TuneSettings, given: Sequence[str] = ()) -> Plan:
    """Validates a search before any work; `given` are the fields of the recipe that were set by flags."""
    space, points = space_of(settings.recipe, settings.space, given), read_points(settings.points)
    settings, dataset, features = resolve_inputs(settings)
    if "validation" not in dataset.index.splits:
        raise InputError(
            f"{dataset.store.url} has no validation split to compare trials by; pack it with --validation-scenes 2"
        )
    recipe = settings.recipe
    for values in [*({name: v} for name, d in space.items() for v in extremes(d)), *points]:
        plan_of(applied(recipe, values), dataset.index)
    images = total_images(recipe, plan_of(recipe, dataset.index))
    grace_images = settings.grace_images or max(1, images // FIRST_RUNG)
    own = {name: value_of(recipe, name) for name in space}
    # A name of its own, so that training the best recipe does not resume a run of the original one.
    name = settings.search or f"{recipe.name}-search-{dataset.index.digest[:8]}"
    settings = replace(
        settings,
        search=name,
        grace_images=grace_images,
        validate_images=settings.validate_images or grace_images,
        recipe=replace(recipe, name=name, data=replace(recipe.data, images=images)),
    )
    first = [own] * contains(space, own) + [{**own, **point} for point in points]
    origin = origin_of(dataset, features)
    return Plan(settings=settings, space=space, first=first, images=images, dataset=dataset, origin=origin)


def tune(plan: Plan) -> Search:
    """Runs the trials that have not ended yet, and returns the search."""
    from cluster.on_ray import launch  # needs Ray
    from cluster.on_ray.nodes import count_free_slots
    from cluster.on_ray.tune import check_on_head, run_trials

    settings, search = plan.settings, read(plan)
    assert settings.data
    assert settings.runs
    print(dataset_line(plan.dataset.index, plan.dataset.store.url))
    print(f"search   {search.url}: {settings.trials} trials of {plan.images:,} images; so far {counts(search.trials)}")
    print(f"space    {'  '.join(f'{name}={describe(d)}' for name, d in plan.space.items())}", flush=True)
    if is_done(search, settings):
        print(f"{table(search)}\n{search.url}: all trials have ended; add more with --trials", flush=True)
        return search
    with launch.connected(quiet=True):
        check_on_head()
        nodes = check_access(settings.data, settings.runs, settings.placement)
        at_once = settings.at_once or max(1, count_free_slots(settings.placement))
        print(f"nodes    {', '.join(nodes)}: {at_once} concurrent trials", flush=True)
        if settings.check:
            print("check passed; rerun without --check to start the search")
            return search
        with acquire_lease(search.url) as holder:
            search = read(plan)  # again, because the previous holder may have written until now
            driver = _Driver(plan, search, holder)
            count = sum(trial.state == "running" for trial in search.trials)
            count += max(0, settings.trials - len(search.trials))
            if count:
                run_trials(run_trial, driver, count, at_once)
    return search


def read(plan: Plan) -> Search:
    """The search as its record says; with --retry-failed, failed trials become running ones."""
    settings = plan.settings
    assert settings.runs
    assert settings.search
    url, retry = join(settings.runs, settings.search), Retry(limit_s=settings.storage_wait_s)
    search = Search(url, settings.recipe, settings.metric, _resume_fingerprint(plan), retry)
    for trial in search.trials:
        if trial.state == "failed" and settings.retry_failed:
            trial.state, trial.reason = "running", ""
    return search


def is_done(search: Search, settings: TuneSettings) -> bool:
    """Whether every trial has ended."""
    return len(search.trials) >= settings.trials and all(trial.state != "running" for trial in search.trials)


class _Driver:
    """Starts trials, interrupted ones first, and moves each from "running" to "finished", "stopped" or "failed"."""

    def __init__(self, plan: Plan, search: Search, holder: Holder) -> None:
        self._plan, self._search, self._holder, self._live = plan, search, holder, LiveTable()
        self._interrupted = [trial for trial in search.trials if trial.state == "running"]
        settings, grace = plan.settings, plan.settings.grace_images or 1
        seed, reduction = settings.recipe.seed, int(settings.reduction)
        self._study = Study(plan.space, settings.metric, settings.sampler, seed, grace, reduction)
        self._study.replay(search.trials)

    def ask(self) -> TrialConfig:
        trial = self._interrupted.pop(0) if self._interrupted else self._new()
        self._live.event(f"{self._search.name_of(trial)}: starting")
        return _trial_config(self._plan, self._search, trial)

    def _new(self) -> Trial:
        number, first = len(self._search.trials), self._plan.first
        values = self._study.start(number, first[number] if number < len(first) else None)
        self._search.trials.append(Trial(number=number, values=values))
        self._search.write(self._holder)
        return self._search.trials[-1]

    def reported(self, name: str, metrics: Mapping[str, Any]) -> bool:
        trial = self._named(name)
        if not trial.add(metrics):
            return False
        stop = self._study.should_stop(trial.number, trial.curve[-1])
        if stop and trial.images_seen < self._plan.images:  # at the end, its last checkpoint may not be written yet
            self._end(trial, "stopped")
            return True
        self._search.write(self._holder)
        self._live.show(self._search)
        return False

    def ended(self, name: str, error: Exception | None) -> None:
        reason = f"{type(error).__name__}: {error}".splitlines()[0] if error else ""
        self._end(self._named(name), "failed" if error else "finished", reason)

    def _named(self, name: str) -> Trial:
        return next(trial for trial in self._search.trials if self._search.name_of(trial) == name)

    def _end(self, trial: Trial, state: Literal["finished", "stopped", "failed"], reason: str = "") -> None:
        trial.state, trial.reason = state, reason
        self._study.end(trial)
        self._search.write(self._holder)
        report.write(self._search, self._plan.space)
        name, suffix = self._search.name_of(trial), f" ({reason})" if reason else ""
        self._live.event(f"{name}: {state} at {trial.images_seen:,} images{suffix}")
        self._live.show(self._search, force=True)


def run_trial(config: TrialConfig, report: Callable[[dict[str, Any]], None], callbacks: Any) -> None:
    """One trial, in its own process on the head: trains a run, or resumes it."""
    settings = config.settings
    run = Run(join(settings.runs or "", settings.run or ""))
    for metrics in _validations(run):
        report(metrics)
    train(settings, config.placement, callbacks)
    *_, last = _validations(run)
    report(last)  # the workers' own last report may arrive too late


def _validations(run: Run) -> Iterator[dict[str, Any]]:
    """The validations of a run up to the checkpoint from which it resumes."""
    for line in run.metrics_until(run.images_seen()):
        if "validation_psnr" in line:
            yield {name: line[name] for name in (*POINT, "ranks", "threads_per_rank")}


def _trial_config(plan: Plan, search: Search, trial: Trial) -> TrialConfig:
    """The settings of the search, with the trial's own run and recipe."""
    settings, name = plan.settings, search.name_of(trial)
    shared = {field: getattr(settings, field) for field in _SHARED}
    own = TrainSettings(
        **shared, run=f"{search.name}/{name}", nodes=settings.nodes_per_trial, recipe=search.recipe_of(trial)
    )
    return TrialConfig(name=name, settings=own, placement=settings.placement)


def _resume_fingerprint(plan: Plan) -> dict[str, Any]:
    """What must not change when a search resumes: what the trials share, how they are drawn and when they stop."""
    settings = plan.settings
    return {
        "recipe": json.loads(recipes.to_json(settings.recipe)),
        "origin": asdict(plan.origin),
        "space": {name: describe(distribution) for name, distribution in plan.space.items()},
        "first": list(plan.first),
        **{name: getattr(settings, name) for name in ("sampler", "metric", "grace_images", "reduction")},
    }
