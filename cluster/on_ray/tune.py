"""Run the trials of a search under Ray Tune.

Tune places the trials, runs them concurrently and stops them. The caller chooses each configuration, decides which
trial to stop early and keeps the record, so Tune's own experiment state is written to a temporary folder and dropped.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.errors import FINAL, Diverged, InputError, RanksFailed

ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}  # a trial only waits for its workers, which need the CPUs
TRIAL_ERRORS = (Diverged, RanksFailed)  # another trial may well not have them


class Trials(Protocol):
    """The caller's side of a search; Tune's driver loop calls it from one thread."""

    def ask(self) -> tuple[int, Callable[..., None]]:
        """The number of the next trial, and a picklable function of (report, callbacks of Ray Train workers).

        The function runs in a process of its own and must call report(metrics) at least once.
        """

    def reported(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """Takes the metrics of a trial; returns whether to stop it, after which `ended` is not called."""

    def ended(self, number: int, error: Exception | None) -> None:
        """A trial has returned, or failed with an error."""


def check_on_head() -> None:
    """Raises InputError if this process does not run on the head node, where trials are placed."""
    (head,) = (n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("node:__internal_head__"))
    if ray.get_runtime_context().get_node_id() != head:
        raise InputError("a search must run on the head node of the cluster; submit it with `ray job submit`")


def run_trials(trials: Trials, count: int, max_concurrent: int) -> None:
    """Runs the next `count` trials, each in a process on the head.

    An error specific to one trial fails that trial; any other error, or one of `trials`, ends the search and is raised.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the caller prints its own table
    logging.getLogger("ray.tune").setLevel(logging.FATAL)  # the caller reports errors
    events = _Events(trials)
    with tempfile.TemporaryDirectory(prefix="ray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(_run, ON_HEAD),
            param_space={"trial": tune.sample_from(lambda _: events.trials.ask())},
            tune_config=tune.TuneConfig(num_samples=count, max_concurrent_trials=max_concurrent, reuse_actors=False),
            run_config=tune.RunConfig(storage_path=folder, callbacks=[events], stop=events.should_stop, verbose=0),
        )
        try:
            tuner.fit()
        except TuneError as tune_error:  # has only the text of an error of `events`, which is its context
            error: BaseException = tune_error
            while isinstance(error, TuneError) and error.__context__:
                error = error.__context__
            raise error from None


def _run(config: dict[str, Any]) -> None:
    _, run_trial = config["trial"]
    run_trial(tune.report, [TuneReportCallback()])


class _Events(tune.Callback):
    """Passes Tune's events to `Trials`; an error raised here stops Tune's driver loop."""

    def __init__(self, trials: Trials) -> None:
        self.trials = trials

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the experiment state, which nobody reads

    def should_stop(self, _trial_id: str, result: Mapping[str, Any]) -> bool:
        number, _ = result["config"]["trial"]
        if result["done"]:  # Tune repeats the last result when the function has returned
            self.trials.ended(number, None)
            return True
        return self.trials.reported(number, result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        # `trial.get_pickled_error` reads a copy that is written later.
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        error = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(error, FINAL) and not isinstance(error, TRIAL_ERRORS):
            raise error
        self.trials.ended(trial.config["trial"][0], error)
