"""Trials of a search under Ray Tune, each of which starts ranks of its own and is ended early where it lags behind.

Tune starts trials, hears what they report and ends them (ASHA); what a trial is, which comes next and what is kept of
it is the caller's. Nothing is asked of Tune's own records: a search that was interrupted is a new one that is told how
far trials before it came.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.train import UserCallback
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.errors import FINAL, Diverged, InputError, RanksFailed

ON_THE_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}  # a trial waits for its ranks; they need the processors
OF_THE_TRIAL = (Diverged, RanksFailed)  # errors that another trial need not have

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Reporter:
    """How a trial is heard: `report` what its earlier starts reached; its ranks are heard by the `callbacks`."""

    report: Callable[[dict[str, Any]], None]
    callbacks: Sequence[UserCallback]


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """ASHA (arXiv:1810.05934): at `first`, `first x reduction`, ... of `clock` a trial goes on if it is among the best.

    Those are one in `reduction` of the trials that came as far; `metric` is better where it is higher. At the `end`
    nobody is stopped any more.
    """

    clock: str
    metric: str
    first: int
    reduction: float
    end: int


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What a search asks and tells its caller; all of it is called in one thread.

    ask       the plain configuration of the next trial with its unique `name`, None when there is none
    reported  a trial's name and what it reports
    ended     a trial's name, and its error where it failed
    """

    ask: Callable[[], dict[str, Any] | None]
    reported: Callable[[str, Metrics], None]
    ended: Callable[[str, Exception | None], None]


def check_here() -> None:
    """Raises InputError where this process is not on the head, where trials are started."""
    (head,) = (n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("node:__internal_head__"))
    if ray.get_runtime_context().get_node_id() != head:
        raise InputError("a search is started on the head of the cluster, for instance by `ray job submit`")


def search(
    run_trial: Callable[[dict[str, Any], Reporter], None],
    trials: Trials,
    rungs: Rungs,
    past: Mapping[str, Sequence[Metrics]],
    at_once: int,
) -> None:
    """Runs `run_trial(configuration, reporter)` in a process on the head for each trial, so many `at_once`.

    `past` is what trials that have ended reported, by name: others are compared with them. An error that concerns a
    trial alone ends that trial; any other ends the search and is raised.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the caller has a table of its own
    logging.getLogger("ray.tune").setLevel(logging.FATAL)  # the caller hears of errors

    def in_a_trial(configuration: dict[str, Any]) -> None:
        run_trial(json.loads(configuration["plain"]), Reporter(tune.report, [TuneReportCallback()]))

    told = _Told(trials)
    with tempfile.TemporaryDirectory(prefix="ray-tune-") as records:
        tune.Tuner(
            tune.with_resources(in_a_trial, ON_THE_HEAD),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_Asked(trials.ask, told),
                scheduler=_scheduler(rungs, past),
                max_concurrent_trials=at_once,
                reuse_actors=False,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(storage_path=records, callbacks=[told], stop=_Stopper(told), verbose=0),
        ).fit()
    if told.error:
        raise told.error


def _name(trial: Trial) -> str:
    return str(trial.config["name"])


def _error_of(trial: Trial) -> Exception:
    """What a trial raised, or Ray's word for what became of its process."""
    # `get_pickled_error` reads a copy of this that is made later.
    error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error.cause if isinstance(error, RayTaskError) else error


class _Told(tune.Callback):
    """Hands on what Tune says of trials; an error of the caller, or one that all trials would have, ends the search."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes copies of all that it was given; nobody reads them

    def guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns; None after an error, which ends the search."""
        try:
            return None if self.error else function(*arguments)
        except Exception as error:
            self.error = error
            return None

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: Metrics, **info: Any) -> None:
        self.guarded(self._trials.reported, _name(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.guarded(self._trials.ended, _name(trial), None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = _error_of(trial)
        if isinstance(error, FINAL) and not isinstance(error, OF_THE_TRIAL):
            self.error = self.error or error
        else:
            self.guarded(self._trials.ended, _name(trial), error)


class _Stopper(tune.Stopper):
    def __init__(self, told: _Told) -> None:
        self._told = told

    def __call__(self, trial_id: str, result: Metrics) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._told.error is not None


class _Asked(Searcher):
    """Lets Tune ask the caller for the next trial."""

    def __init__(self, ask: Callable[[], dict[str, Any] | None], told: _Told) -> None:
        super().__init__()
        self._ask, self._told = ask, told

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as above

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        configuration = self._told.guarded(self._ask)
        if configuration is None:
            return str(Searcher.FINISHED)
        # As one text: Tune gives names with a slash, and some values, a meaning of their own.
        return {"name": configuration["name"], "plain": json.dumps(configuration)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """`_Told` hears it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see above."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is not restored by Tune")


class _Asha(ASHAScheduler):
    """Stops nobody at the end: that trial's last checkpoint is still on its way."""

    def __init__(self, rungs: Rungs) -> None:
        self._end = rungs.end
        super().__init__(
            time_attr=rungs.clock,
            metric=rungs.metric,
            mode="max",
            grace_period=rungs.first,
            reduction_factor=rungs.reduction,
            max_t=max(rungs.first, rungs.end - 1),
            stop_last_trials=False,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result[self._time_attr] >= self._end else decision


def _scheduler(rungs: Rungs, past: Mapping[str, Sequence[Metrics]]) -> ASHAScheduler:
    """ASHA that has heard what trials before reported."""
    scheduler = _Asha(rungs)
    for name, curve in past.items():
        trial = SimpleNamespace(trial_id=name)  # all that ASHA looks at
        scheduler.on_trial_add(None, trial)
        for metrics in curve:
            scheduler.on_trial_result(None, trial, dict(metrics))
    return scheduler
