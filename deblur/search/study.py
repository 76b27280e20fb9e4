"""The Optuna study of a search: which configuration comes next, which trial to stop, which parameters matter.

It lives in memory only. A search that resumes replays its record into a new study, trial by trial.
"""

import logging
from collections.abc import Mapping, Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from deblur.config import randomness
from deblur.search.config import Metric, TuneSettings
from deblur.search.record import Trial
from deblur.search.space import Space, Values, contains

SAMPLERS = {"random": RandomSampler, "tpe": TPESampler}
MIN_TRIALS = 10  # fewer say nothing about several parameters
_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}

logging.getLogger("optuna").setLevel(logging.WARNING)


class Study:
    """Optuna's ask-and-tell interface, with one random stream per trial and ASHA (arXiv:1810.05934).

    ASHA's rungs are at `grace_images`, `grace_images * reduction`, ...; one in `reduction` trials passes a rung.
    """

    def __init__(self, settings: TuneSettings, space: Space, trials: Sequence[Trial] = ()) -> None:
        """Replays the trials of a record, in their order."""
        self._settings, self._space = settings, space
        pruner = SuccessiveHalvingPruner(min_resource=settings.grace_images or 1, reduction_factor=settings.reduction)
        self._study = optuna.create_study(direction="maximize", pruner=pruner)
        self._trials: dict[int, optuna.Trial] = {}
        for trial in trials:
            self.start(trial.number, trial.values)
            for point in trial.curve:
                self.should_stop(trial.number, point)
            self.end(trial)

    def start(self, number: int, values: Values | None = None) -> Values:
        """Starts the trial of a number, with `values` or with drawn ones, and returns them.

        A draw depends on the seed, the number and, with TPE, on the trials before; values may lie outside the space.
        """
        seed = randomness.sampler_seed(self._settings.recipe.seed, number)
        self._study.sampler = SAMPLERS[self._settings.sampler](seed=seed)
        inside = values is None or contains(self._space, values)
        if values and inside:
            self._study.enqueue_trial(dict(values))
        self._trials[number] = self._study.ask({**self._space} if inside else None)
        return values or self._trials[number].params

    def should_stop(self, number: int, point: Mapping[str, float]) -> bool:
        """Takes the next point of a trial's curve; returns whether ASHA stops the trial there."""
        self._trials[number].report(point[f"validation_{self._settings.metric}"], int(point["images_seen"]))
        return self._trials[number].should_prune()

    def end(self, trial: Trial) -> None:
        """Notes how a trial ended; does nothing if it has not."""
        if trial.state in _STATES:
            score = trial.score(self._settings.metric) if trial.state == "finished" else None
            self._study.tell(self._trials[trial.number], score, _STATES[trial.state])


def importances(space: Space, trials: Sequence[Trial], metric: Metric) -> dict[str, float]:
    """The relative importance of each parameter for being in the better half of the trials, {} if there are too few.

    PED-ANOVA (arXiv:2304.10255). They sum to 1, so they say nothing about whether any parameter matters at all.
    Trials that were stopped count with their newest score.
    """
    known = [trial for trial in trials if trial.score(metric) is not None and contains(space, trial.values)]
    if len(known) < MIN_TRIALS:
        return {}
    study = optuna.create_study(direction="maximize")
    for trial in known:
        study.add_trial(create_trial(value=trial.score(metric), params=dict(trial.values), distributions=dict(space)))
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=0.5))
