"""How much of what trials reached is explained by each parameter alone."""

from collections.abc import Sequence

import numpy as np
import scipy.stats

from deblur.search.record import Metric, Trial
from deblur.search.space import Choices, Range, Space, holds

ENOUGH = 10  # trials; fewer say nothing of several parameters


def importances(space: Space, trials: Sequence[Trial], metric: Metric) -> dict[str, float]:
    """The share in [0, 1] of the variance of the trials' ranks that each parameter explains; {} of too few trials.

    Ranks, for a hopeless trial should not outweigh all others. Explained by a quadratic of a number (of its logarithm,
    where it is drawn so), by the mean of each choice; adjusted for their terms (Wherry's formula), so that a parameter
    without effect has 0 in the mean. What parameters do together is in none of them.
    """
    known = [trial for trial in trials if trial.score(metric) is not None and holds(space, trial.values)]
    if len(known) < ENOUGH:
        return {}
    ranks = scipy.stats.rankdata([trial.score(metric) for trial in known])
    return {name: _explained(_terms(range_, [t.values[name] for t in known]), ranks) for name, range_ in space.items()}


def _terms(range_: Range | Choices, values: Sequence[object]) -> np.ndarray:
    """What a least-squares fit has beside its constant: [N, K], K linearly independent."""
    if isinstance(range_, Choices):
        found = sorted(set(values), key=str)
        return np.array([[value == choice for choice in found[1:]] for value in values], dtype=float)
    x = np.array(values, dtype=float)
    x = np.log(x) if range_.logarithmic else x
    spread = np.ptp(x)
    x = (x - x.mean()) / spread if spread else x
    return np.stack([x, x**2], axis=1)[:, : len(set(x.tolist())) - 1]


def _explained(terms: np.ndarray, ranks: np.ndarray) -> float:
    count, degrees = terms.shape[0], terms.shape[1] if terms.ndim == 2 else 0
    total = float(np.square(ranks - ranks.mean()).sum())
    if not degrees or not total or count <= degrees + 1:
        return 0.0
    design = np.column_stack([np.ones(count), terms])
    rest = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    unexplained = float(np.square(rest).sum()) / total
    return max(0.0, 1 - unexplained * (count - 1) / (count - degrees - 1))
