"""A search from its settings to its end: what its trials are, which comes next, what is kept of each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from cluster.storage import Retry, join
from cluster.storage.lease import Holder, acquire_lease
from deblur.config import cli, recipes
from deblur.config.cli import SharedSettings
from deblur.data.dataset import Dataset
from deblur.search import report as search_report
from deblur.search import space, tpe
from deblur.search.record import POINT, Metric, Search, Trial
from deblur.search.table import Shown, counts, table
from deblur.training.job import TrainSettings, dataset_line, located, nodes_that_reach, origin_of, train
from deblur.training.loop import plan_of, total_images
from deblur.training.run import Origin, Run

FIRST_RUNG = 16  # the first look at a trial comes at this part of the budget


_SHARED = {field.name for field in fields(SharedSettings)} - {
    "check",
    "recipe",
}  # what a trial's training is told as it is


@dataclass(frozen=True, kw_only=True)
class TuneSettings(SharedSettings):
    """What is searched and where. The recipe's own fields can be set by flags, too, and are then not varied."""

    search: str | None = None
    """Name of the search; else from the recipe and the dataset. The same name goes on with the same search."""
    trials: int = 20
    """How many configurations are tried; more of them later go on with the same search."""
    nodes_per_trial: int = 1
    """Machines of each trial, with all their GPUs."""
    trials_per_node: int = 1
    """So many trials share a machine, each with its part of the GPUs and CPUs."""
    at_once: int | None = None
    """Trials at once; else as many as the cluster has room for at the start. More than that wait for new nodes."""
    space: tuple[str, ...] = ()
    """NAME=LOW:HIGH, NAME=A,B or NAME=VALUE for fields of the recipe (by the names of their flags), or .json files."""
    points: str | None = None
    """A .json file: a list of {name: value}, tried before configurations are drawn."""
    sampler: Literal["random", "tpe"] = "random"
    """How they are drawn: evenly, or where others did well (TPE, needs Optuna)."""
    metric: Metric = "psnr"
    """What decides, on the validation split."""
    grace_images: int | None = None
    """Images before a trial can be ended; else a sixteenth of the budget."""
    reduction: float = 4.0
    """Of the trials that come to a rung (grace, grace x reduction, ...) one in so many goes on."""
    retry_failed: bool = False
    """Make trials again that failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trials", "nodes_per_trial", "trials_per_node", "at_once", "grace_images"):
            self.at_least_one(name)
        if self.nodes_per_trial > 1 and self.trials_per_node > 1:
            raise InputError(
                f"--nodes-per-trial {self.nodes_per_trial} with --trials-per-node {self.trials_per_node}: a trial has "
                "several machines or a part of one; leave one of the two at 1"
            )
        if self.reduction <= 1:
            raise InputError(f"--reduction is {self.reduction:g}; it must be more than 1")

    @property
    def placement(self) -> Placement:
        """Where the ranks of one trial go."""
        return Placement(
            nodes=self.nodes_per_trial,
            ranks_per_node=self.ranks_per_node,
            wait_s=self.wait_s,
            groups_per_node=self.trials_per_node,
            shared_cluster=True,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A search whose settings were found good."""

    settings: TuneSettings
    space: space.Space
    first: Sequence[Mapping[str, space.Value]]
    """Configurations that are not drawn: the recipe's own, then the points."""
    images: int
    grace_images: int
    dataset: Dataset
    origin: Origin

    def values_of(self, number: int, before: Sequence[Trial]) -> dict[str, space.Value]:
        """The configuration of a trial; TPE looks at those before it."""
        settings = self.settings
        if number < len(self.first):
            return dict(self.first[number])
        if settings.sampler == "tpe":
            return tpe.drawn(self.space, before, settings.metric, settings.recipe.seed, number)
        return space.drawn(self.space, settings.recipe.seed, number)


def prepare(settings: TuneSettings, given: Sequence[str] = ()) -> Plan:
    """Finds all that can be known to be wrong before any work."""
    if settings.sampler == "tpe":
        tpe.check()
    varied = space.space_of(settings.recipe, settings.space, given)
    points = space.read_points(settings.points)
    settings, dataset, features = located(settings)
    if "validation" not in dataset.index.splits:
        raise InputError(
            f"{dataset.store.url}: has no validation split, by which trials are judged; pack it again with "
            "--validation-scenes 2"
        )
    recipe = settings.recipe
    for values in [*({n: v} for n, range_ in varied.items() for v in range_.corners()), *points]:
        plan_of(space.applied(recipe, values), dataset.index)
    images = total_images(recipe, plan_of(recipe, dataset.index))
    grace = settings.grace_images or max(1, images // FIRST_RUNG)
    own = space.own_values(recipe, varied)
    first = [own] if space.holds(varied, own) else []
    name = settings.search or f"{recipe.name}-search-{dataset.index.digest[:8]}"
    # A name of its own, so that a training of the best recipe is not taken for one of the recipe that it came from.
    settings = replace(
        settings,
        search=name,
        validate_images=settings.validate_images or grace,
        recipe=replace(recipe, name=name, data=replace(recipe.data, images=images)),
    )
    first += [{**own, **point} for point in points]
    return Plan(
        settings=settings,
        space=varied,
        first=first,
        images=images,
        grace_images=grace,
        dataset=dataset,
        origin=origin_of(dataset, features),
    )


def tune(plan: Plan) -> Search:
    """Makes the trials that are still to be made, and returns the search."""
    from cluster.on_ray import launch  # needs Ray
    from cluster.on_ray.nodes import count_free_slots
    from cluster.on_ray.tune import check_here

    settings, found = plan.settings, _read(plan)
    assert settings.data
    assert settings.runs
    print(dataset_line(plan.dataset.index, plan.dataset.store.url))
    print(f"search   {found.url}: {settings.trials} trials of {plan.images:,} images; so far {counts(found.trials)}")
    print(f"varied   {'  '.join(f'{name}={range_}' for name, range_ in plan.space.items())}", flush=True)
    if is_done(found, settings):
        print(table(found))
        print(f"{found.url}: all its trials have ended already; more of them with --trials", flush=True)
        return found
    with launch.connected(quiet=True):
        check_here()
        nodes = nodes_that_reach(settings.data, settings.runs, settings.placement)
        at_once = settings.at_once or max(1, count_free_slots(settings.placement))
        print(f"nodes    {', '.join(nodes)}: {at_once} trials at once", flush=True)
        if settings.check:
            print("all is well; the same command without --check searches")
            return found
        with acquire_lease(found.url) as holder:
            found = _read(plan)  # a start before this one may have written until now
            _search(plan, found, holder, at_once)
    return found


def _read(plan: Plan) -> Search:
    """The search as it was left, with the trials that are to be made again taken up."""
    settings = plan.settings
    assert settings.runs
    assert settings.search
    retry = Retry(limit_s=settings.storage_wait_s)
    url = join(settings.runs, settings.search)
    found = Search(url, settings.recipe, settings.metric, _resume_fingerprint(plan), retry)
    for trial in found.trials:
        if trial.state == "failed" and settings.retry_failed:
            trial.state, trial.reason = "running", ""
    return found


def _search(plan: Plan, found: Search, holder: Holder, at_once: int) -> None:
    from cluster.on_ray.tune import Rungs, Trials, search

    settings, shown = plan.settings, Shown()
    waiting = [trial for trial in found.trials if trial.state == "running"]

    def ask() -> dict[str, Any] | None:
        if waiting:
            trial = waiting.pop(0)
        elif len(found.trials) < settings.trials:
            number = len(found.trials)
            trial = Trial(number=number, values=plan.values_of(number, found.trials))
            found.trials.append(trial)
            found.write(holder)
        else:
            return None
        shown.now(f"{found.name_of(trial)}: starts")
        return _configuration(plan, found, trial)

    def reported(name: str, metrics: Mapping[str, Any]) -> None:
        if found.named(name).add(metrics):
            found.write(holder)
            shown.table(found)

    def ended(name: str, error: Exception | None) -> None:
        trial = found.named(name)
        trial.state = "failed" if error else "finished" if trial.images_seen >= plan.images else "stopped"
        trial.reason = f"{type(error).__name__}: {error}".splitlines()[0] if error else ""
        found.write(holder)
        search_report.write(found, plan.space)
        shown.now(f"{name}: {trial.state} at {trial.images_seen:,} images{trial.reason and f' ({trial.reason})'}")
        shown.table(found, at_once=True)

    search(
        run_trial,
        Trials(ask=ask, reported=reported, ended=ended),
        Rungs(
            clock="images_seen",
            metric=f"validation_{settings.metric}",
            first=plan.grace_images,
            reduction=settings.reduction,
            end=plan.images,
        ),
        past={found.name_of(trial): trial.curve for trial in found.trials if trial.state in ("finished", "stopped")},
        at_once=at_once,
    )


def run_trial(configuration: dict[str, Any], reporter: Any) -> None:
    """One trial, in a process of its own on the head: a training, which goes on where an earlier start of it was."""
    settings = cli.from_plain(TrainSettings, configuration["settings"])
    run = Run(settings.run_url)
    for metrics in _validations(run):
        reporter.report(metrics)
    train(settings, Placement(**configuration["placement"]), reporter.callbacks)
    *_, last = _validations(run)
    reporter.report(last)  # the ranks' own last word may still be on its way when they have ended


def _validations(run: Run) -> Iterator[dict[str, Any]]:
    """What a run reported at the validations up to the checkpoint from which it goes on."""
    for line in run.metrics_until(run.images_seen()):
        if "validation_psnr" in line:
            yield {name: line[name] for name in (*POINT, "ranks", "threads_per_rank")}


def _configuration(plan: Plan, found: Search, trial: Trial) -> dict[str, Any]:
    """A trial as plain values: the search's settings, and its own run and recipe."""
    shared = {name: value for name, value in cli.plain(plan.settings).items() if name in _SHARED}
    name = found.name_of(trial)
    own = {"run": f"{found.name}/{name}", "nodes": plan.settings.nodes_per_trial}
    own |= {"recipe": recipes.to_json(found.recipe_of(trial))}
    return {"name": name, "settings": shared | own, "placement": asdict(plan.settings.placement)}


def _resume_fingerprint(plan: Plan) -> dict[str, Any]:
    """What must not change while a search goes on: all that trials share, how they are drawn, and who is ended."""
    settings = plan.settings
    return {
        "recipe": json.loads(recipes.to_json(settings.recipe)),
        "origin": asdict(plan.origin),
        "space": {name: str(range_) for name, range_ in plan.space.items()},
        "first": list(plan.first),
        "sampler": settings.sampler,
        "metric": settings.metric,
        "grace_images": plan.grace_images,
        "reduction": settings.reduction,
    }


def is_done(found: Search, settings: TuneSettings) -> bool:
    """Whether every trial has ended."""
    return len(found.trials) >= settings.trials and all(trial.state != "running" for trial in found.trials)
