"""A search from its settings to its end: which trials run, and what the record keeps of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from cluster.storage import join
from cluster.storage.lease import Holder, acquire_lease
from deblur.config.recipes import by_flag, with_flags
from deblur.search import report
from deblur.search.config import TuneSettings
from deblur.search.record import POINT, Search, State, Trial
from deblur.search.space import contains, describe, extremes, read_points, space_of
from deblur.search.study import Study
from deblur.training.job import check_access, dataset_line, origin_of, resolve_inputs, train
from deblur.training.loop import plan_of, total_images
from deblur.training.run import Run
from deblur.training.settings import TrainSettings

FIRST_RUNG = 16  # by default ASHA first compares trials after this fraction of the budget


def run_search(settings: TuneSettings, given: Sequence[str] = ()) -> str | None:
    """Runs or resumes a search and prints its best recipe; returns an error message if it was interrupted."""
    search = prepare(settings, given)
    count, images = settings.trials, search.settings.recipe.data.images
    print(f"search   {search.url}: {count} trials of {images:,} images; so far {report.counts(search)}")
    print(f"space    {'  '.join(f'{name}={describe(d)}' for name, d in search.space.items())}", flush=True)
    if search.count_left():
        _run_trials(search)
        if settings.check:
            print("check passed; rerun without --check to start the search")
            return None
    print(report.table(search))
    if search.count_left():
        return f"{search.url}: interrupted; the same command resumes the search"
    print(f"{search.url}: all trials have ended; add more with --trials")
    if best := search.best():
        print(f"best     {search.name_of(best)}: {best.values}")
        print(f"         python -m deblur.train --recipe {join(search.url, 'best.json')}")
        print(f"         {join(search.url, 'report.html')}")
    return None


def prepare(settings: TuneSettings, given: Sequence[str] = ()) -> Search:
    """Validates a search before any work; `given` are the fields of the recipe that were set by flags."""
    space = space_of(settings.recipe, settings.space, given)
    points = read_points(settings.points) if settings.points else []
    settings, dataset, features = resolve_inputs(settings)
    print(dataset_line(dataset.index, dataset.store.url))
    if "validation" not in dataset.index.splits:
        raise InputError(f"{dataset.store.url} has no validation split; pack it with --validation-scenes 2")
    recipe = settings.recipe
    for values in [*({name: v} for name, d in space.items() for v in extremes(d)), *points]:
        plan_of(with_flags(recipe, values), dataset.index)
    images = total_images(recipe, plan_of(recipe, dataset.index))
    grace_images = settings.grace_images or max(1, images // FIRST_RUNG)
    own = {name: by_flag(recipe)[name] for name in space}
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
    return Search(settings, space, first, origin_of(dataset, features))


def _run_trials(search: Search) -> None:
    """Runs the trials that have not ended; with --check, only checks that the cluster can."""
    from cluster.on_ray import launch  # needs Ray
    from cluster.on_ray.nodes import count_free_slots
    from cluster.on_ray.tune import check_on_head, run_trials

    settings = search.settings
    with launch.connected(quiet=True):
        check_on_head()
        nodes = check_access(settings.data or "", settings.runs or "", settings.placement)
        at_once = settings.at_once or max(1, count_free_slots(settings.placement))
        print(f"nodes    {', '.join(nodes)}: {at_once} concurrent trials", flush=True)
        if not settings.check:
            with acquire_lease(search.url) as holder:
                search.read()  # again, because the previous holder may have written until now
                if left := search.count_left():
                    run_trials(_Driver(search, holder), left, at_once)


class _Driver:
    """Starts trials, interrupted ones first, and moves each from "running" to "finished", "stopped" or "failed"."""

    def __init__(self, search: Search, holder: Holder) -> None:
        self._search, self._holder, self._interrupted = search, holder, search.running()
        self._study = Study(search.settings, search.space, search.trials)

    def ask(self) -> tuple[int, partial[None]]:
        search = self._search
        if self._interrupted:
            trial = self._interrupted.pop(0)
        else:
            number = len(search.trials)
            values = self._study.start(number, search.first[number] if number < len(search.first) else None)
            trial = Trial(number=number, values=values)
            search.trials.append(trial)
            search.write(self._holder)
        name = search.name_of(trial)
        print(f"{name}: starting", flush=True)
        settings = search.settings.of_trial(f"{search.name}/{name}", search.recipe_of(trial))
        return trial.number, partial(run_trial, settings, search.settings.placement)

    def reported(self, number: int, metrics: Mapping[str, Any]) -> bool:
        trial, settings = self._search.trials[number], self._search.settings
        if not trial.add(metrics):
            return False
        stop = self._study.should_stop(number, trial.curve[-1])
        if stop and trial.images_seen < (settings.recipe.data.images or 0):  # else its last checkpoint may be missing
            self._end(trial, "stopped")
            return True
        self._search.write(self._holder)
        score = f"{settings.metric.upper()} {trial.score(settings.metric):.4f}"
        print(f"{self._search.name_of(trial)}: {trial.images_seen:,} images, {score}", flush=True)
        return False

    def ended(self, number: int, error: Exception | None) -> None:
        self._end(self._search.trials[number], "failed" if error else "finished", error)

    def _end(self, trial: Trial, state: State, error: Exception | None = None) -> None:
        trial.state = state
        trial.reason = f"{type(error).__name__}: {error}".splitlines()[0] if error else ""
        self._study.end(trial)
        self._search.write(self._holder)
        report.write(self._search)
        print(f"{self._search.name_of(trial)}: {state} at {trial.images_seen:,} images")
        print(report.table(self._search), flush=True)


def run_trial(
    settings: TrainSettings, placement: Placement, report: Callable[[dict[str, Any]], None], callbacks: Sequence[Any]
) -> None:
    """One trial, in its own process on the head: trains a run, or resumes it."""
    run = Run(join(settings.runs or "", settings.run or ""))
    for metrics in _validations(run):
        report(metrics)
    train(settings, placement, callbacks)
    *_, last = _validations(run)
    report(last)  # the workers' own last report may arrive too late


def _validations(run: Run) -> Iterator[dict[str, Any]]:
    """The validations of a run up to the checkpoint from which it resumes."""
    for line in run.metrics_until(run.images_seen()):
        if "validation_psnr" in line:
            yield {name: line[name] for name in (*POINT, "ranks", "threads_per_rank")}
