"""Run the trials of a search under Ray Tune.

Tune places the trials, runs them concurrently and stops them. The caller chooses each configuration, decides which
trial to stop early and keeps the record, so Tune's own experiment state is written to a temporary folder and dropped.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.train import UserCallback
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.errors import FINAL, Diverged, InputError, RanksFailed

ON_HEAD = {"CPU": 0, "node:__internal_head__": 0.001}  # a trial only waits for its workers, which need the CPUs
TRIAL_ERRORS = (Diverged, RanksFailed)  # another trial may well not have them


class TrialConfig(Protocol):
    """What the process of one trial receives; it is pickled."""

    @property
    def name(self) -> str:
        """Unique in the search."""


RunTrial = Callable[[Any, Callable[[dict[str, Any]], None], Sequence[UserCallback]], None]
"""Takes a TrialConfig, a function that reports metrics, and callbacks that report those of Ray Train workers."""


class Trials(Protocol):
    """The caller's side of a search; Tune's driver loop calls it from one thread."""

    def ask(self) -> TrialConfig:
        """The configuration of the next trial."""

    def reported(self, name: str, metrics: Mapping[str, Any]) -> bool:
        """Takes the metrics of a trial; returns whether to stop it, after which `ended` is not called."""

    def ended(self, name: str, error: Exception | None) -> None:
        """A trial has returned, or failed with an error."""


def check_on_head() -> None:
    """Raises InputError if this process does not run on the head node, where trials are placed."""
    (head,) = (n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("node:__internal_head__"))
    if ray.get_runtime_context().get_node_id() != head:
        raise InputError("a search must run on the head node of the cluster; submit it with `ray job submit`")


def run_trials(run_trial: RunTrial, trials: Trials, count: int, max_concurrent: int) -> None:
    """Runs `run_trial`, which must report at least once, in a process on the head for each trial.

    An error specific to one trial fails that trial; any other error, or one of `trials`, ends the search and is raised.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the caller prints its own table
    logging.getLogger("ray.tune").setLevel(logging.FATAL)  # the caller reports errors

    def trainable(config: dict[str, Any]) -> None:
        run_trial(config["trial"], tune.report, [TuneReportCallback()])

    events = _Events(trials)
    with tempfile.TemporaryDirectory(prefix="ray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, ON_HEAD),
            param_space={"trial": tune.sample_from(events.ask)},
            tune_config=tune.TuneConfig(num_samples=count, max_concurrent_trials=max_concurrent, reuse_actors=False),
            run_config=tune.RunConfig(storage_path=folder, callbacks=[events], stop=events.stop, verbose=0),
        )
        try:
            tuner.fit()
        except Exception:
            if events.error:  # Tune would raise it as text
                raise events.error from None
            raise


class _Events(tune.Callback):
    """Passes Tune's events to `Trials`. An error raised here stops Tune's driver loop; `error` keeps the original."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled into the experiment state, which nobody reads

    def __deepcopy__(self, memo: Any) -> "_Events":
        return self  # Tune copies the parameter space for each trial

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            self.error = self.error or error
            raise

    def ask(self, _spec: Any) -> TrialConfig:
        config: TrialConfig = self._call(self._trials.ask)
        return config

    def stop(self, _trial_id: str, result: Mapping[str, Any]) -> bool:
        name = _name(result["config"])
        if result["done"]:  # Tune repeats the last result when the function has returned
            self._call(self._trials.ended, name, None)
            return True
        return bool(self._call(self._trials.reported, name, result))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        # `trial.get_pickled_error` reads a copy that is written later.
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        error = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(error, FINAL) and not isinstance(error, TRIAL_ERRORS):
            self.error = error
            raise error
        self._call(self._trials.ended, _name(trial.config), error)


def _name(config: Mapping[str, Any]) -> str:
    return str(config["trial"].name)
