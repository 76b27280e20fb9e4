"""The next configuration of a search by Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011).

Nothing is remembered between calls: the study is built from the record of the search each time, so that a search that
goes on draws what it would have drawn.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cluster.errors import InputError
from deblur.config import randomness
from deblur.search.record import Metric, Trial
from deblur.search.space import Choices, Space, Value, holds

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def check() -> None:
    """Raises InputError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--sampler tpe needs Optuna, which is not installed: pip install -e '.[tpe]'")


def drawn(space: Space, before: Sequence[Trial], metric: Metric, seed: int, number: int) -> dict[str, Value]:
    """The configuration of a trial after those before it; points that lie outside of the space are not looked at."""
    import optuna  # an extra

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=randomness.sampler_seed(seed, number))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {name: _distribution(range_) for name, range_ in space.items()}
    study.add_trials(list(_known(space, distributions, before, metric)))
    asked = study.ask(distributions)
    # As `drawn` of the space rounds them; a range's ends are rounded, too.
    return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in asked.params.items()}


def _distribution(range_: "Choices | object") -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(range_, Choices):
        return CategoricalDistribution(range_.values)
    if range_.whole:
        return IntDistribution(int(range_.low), int(range_.high))
    return FloatDistribution(range_.low, range_.high, log=range_.logarithmic)


def _known(
    space: Space, distributions: "dict[str, BaseDistribution]", before: Sequence[Trial], metric: Metric
) -> "Iterator[FrozenTrial]":
    """Trials as Optuna knows them: one that was stopped early is worse than those that came further, one that runs is
    kept away from, one that failed is not looked at."""
    from optuna.trial import TrialState, create_trial

    states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "running": TrialState.RUNNING}
    for trial in before:
        if trial.state in states and holds(space, trial.values):
            yield create_trial(
                state=states[trial.state],
                value=trial.score(metric) if trial.state == "finished" else None,
                params=trial.values,
                distributions=distributions,
                intermediate_values={
                    int(point["images_seen"]): point[f"validation_{metric}"]
                    for point in trial.curve
                    if f"validation_{metric}" in point
                },
            )
