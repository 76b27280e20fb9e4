"""Which parameter matters: against the F statistic of scipy, planted effects, and chance."""

import numpy as np
import pytest
import scipy.stats

from deblur.search.importance import ENOUGH, importances
from deblur.search.record import Trial
from deblur.search.space import Choices, Range, drawn

SPACE = {
    "rate": Range(1e-5, 1e-2, whole=False, logarithmic=True),
    "count": Range(1, 8, whole=True, logarithmic=False),
    "choice": Choices(("a", "b", "c")),
}


def trials(score, count: int, seed: int = 0) -> list[Trial]:  # type: ignore[no-untyped-def]
    found = []
    for number in range(count):
        values = drawn(SPACE, seed, number)
        point = {"images_seen": 100, "validation_psnr": float(score(values, number))}
        found.append(Trial(number=number, values=values, state="finished", curve=[point]))
    return found


def test_a_choice_has_the_adjusted_share_of_an_analysis_of_variance() -> None:
    noise = np.random.default_rng(0).normal(size=40)
    found = trials(lambda values, number: "abc".index(values["choice"]) + noise[number], 40)
    ranks = scipy.stats.rankdata([trial.curve[0]["validation_psnr"] for trial in found])
    groups = [[r for r, t in zip(ranks, found, strict=True) if t.values["choice"] == c] for c in "abc"]
    f = scipy.stats.f_oneway(*groups).statistic
    between, within = 2, 40 - 3
    unexplained = 1 / (1 + f * between / within)
    assert importances(SPACE, found, "psnr")["choice"] == pytest.approx(1 - unexplained * 39 / within)


def test_an_optimum_within_the_range_is_seen_and_outweighs_the_rest() -> None:
    shares = importances(SPACE, trials(lambda values, _: -(np.log10(values["rate"] / 3e-4) ** 2), 30), "psnr")
    assert shares["rate"] > 0.8
    assert shares["rate"] > 4 * max(shares["count"], shares["choice"])


def test_one_hopeless_trial_does_not_hide_the_others() -> None:
    found = trials(lambda values, number: -1000 if number == 3 else values["count"], 30)
    assert importances(SPACE, found, "psnr")["count"] > 0.8


def test_what_has_no_effect_is_near_nothing() -> None:
    rng = np.random.default_rng(1)
    means = [list(importances(SPACE, trials(lambda *_: rng.normal(), 20, seed), "psnr").values()) for seed in range(60)]
    assert np.mean(means) < 0.05


def test_of_few_trials_and_of_points_outside_nothing_is_said() -> None:
    few = trials(lambda values, _: values["rate"], ENOUGH - 1)
    assert importances(SPACE, few, "psnr") == {}
    outside = Trial(number=99, values=few[0].values | {"rate": 0.7}, state="stopped", curve=few[0].curve)
    assert importances(SPACE, [*few, outside], "psnr") == {}
    assert importances(SPACE, trials(lambda *_: 1.0, 20), "psnr") == dict.fromkeys(SPACE, 0.0), "all alike"
