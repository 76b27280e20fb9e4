"""The study: reproducible draws within the space, ASHA, replay of a record, parameter importance."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from deblur.config import presets
from deblur.search.config import Metric, TuneSettings
from deblur.search.record import State, Trial
from deblur.search.space import contains
from deblur.search.study import MIN_TRIALS, Study, importances

SPACE = {
    "critic_updates": IntDistribution(1, 8),
    "dropout": FloatDistribution(0, 0.5),
    "generator_lr": FloatDistribution(1e-5, 1e-2, log=True),
    "objective": CategoricalDistribution(("wgan-gp", "vanilla", "wasserstein")),
}


def study(trials: Sequence[Trial] = (), seed: int = 0, reduction: int = 2, **settings: Any) -> Study:
    recipe = replace(presets.demo(), seed=seed)
    return Study(TuneSettings(recipe=recipe, grace_images=100, reduction=reduction, **settings), SPACE, trials)


def point(images: int, psnr: float) -> dict[str, float]:
    return {"images_seen": images, "validation_psnr": psnr, "validation_ssim": 1 - psnr / 100}


def draws(count: int, seed: int = 0) -> list[dict]:
    drawing = study(seed=seed)
    return [dict(drawing.start(number)) for number in range(count)]


def tpe_search(count: int, seed: int, metric: Metric = "psnr") -> list[Trial]:
    """One trial at a time; the best learning rate is 1e-3, which SSIM likes least."""
    drawing, trials = study(sampler="tpe", seed=seed, metric=metric), []
    for number in range(count):
        values = dict(drawing.start(number))
        score = 30 - abs(np.log10(values["generator_lr"] / 1e-3)) - (values["objective"] == "vanilla")
        trials.append(Trial(number=number, values=values, curve=[point(100, score)], state="finished"))
        drawing.should_stop(number, trials[-1].curve[0])
        drawing.end(trials[-1])
    return trials


# ---- draws


def test_a_draw_depends_on_seed_and_number_only() -> None:
    assert draws(20) == draws(20)
    assert study().start(7) == draws(8)[7], "not on the draws before it"
    assert all(contains(SPACE, values) for values in draws(20))
    assert len({str(values) for seed in range(5) for values in draws(20, seed)}) == 100


def test_draws_are_uniform_or_log_uniform() -> None:
    found = draws(1000)
    rate, dropout = ([values[name] for values in found] for name in ("generator_lr", "dropout"))
    assert scipy.stats.kstest(rate, scipy.stats.loguniform(1e-5, 1e-2).cdf).pvalue > 0.01
    assert scipy.stats.kstest(dropout, scipy.stats.uniform(0, 0.5).cdf).pvalue > 0.01
    for name in ("critic_updates", "objective"):
        counts = np.unique([values[name] for values in found], return_counts=True)[1]
        assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_tpe_draws_near_good_trials() -> None:
    scores = np.array([[t.score("psnr") for t in tpe_search(40, seed)] for seed in range(3)])
    assert scores[:, 25:].mean() > scores[:, :10].mean() + 0.4


def test_tpe_follows_the_chosen_metric() -> None:
    late = {m: [t.values["generator_lr"] for t in tpe_search(40, 0, m)[25:]] for m in ("psnr", "ssim")}
    distance = {m: np.mean(np.abs(np.log10(np.array(rates) / 1e-3))) for m, rates in late.items()}
    assert distance["psnr"] < distance["ssim"]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_replayed_record_draws_what_the_search_would_have_drawn(sampler: str) -> None:
    whole = tpe_search(20, 0) if sampler == "tpe" else [Trial(number=n, values=v) for n, v in enumerate(draws(20))]
    assert dict(study(whole[:15], sampler=sampler).start(15)) == whole[15].values


@pytest.mark.parametrize("state", ["finished", "stopped", "running", "failed"])
def test_trials_of_every_state_and_points_outside_the_space_are_replayed(state: State) -> None:
    trials = [Trial(number=n, values=v, state=state, curve=[point(100, n)]) for n, v in enumerate(draws(12))]
    outside = {**trials[0].values, "generator_lr": 0.7}
    trials.append(Trial(number=12, values=outside, state=state, curve=[point(100, 99.0)]))
    trials.append(Trial(number=13, values=draws(14)[13]))
    resumed = study(trials, sampler="tpe", reduction=20)
    assert contains(SPACE, resumed.start(14))
    assert resumed.start(15, outside) == outside
    assert resumed.should_stop(15, point(100, 98.0)), "the outside point is compared with the others"


# ---- ASHA


def passes(scores: list[float], score: float, reduction: int) -> bool:
    """ASHA's rule: among the best 1/reduction of those at the rung, itself included; the best always passes."""
    kept = max(1, (len(scores) + 1) // reduction)
    return score >= sorted([*scores, score])[-kept]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 40), min_size=16, max_size=16), min_size=1, max_size=8), st.sampled_from([2, 4])
)
def test_asha_stops_those_outside_the_best_at_each_rung(curves: list[list[int]], reduction: int) -> None:
    pruned, rungs = study(reduction=reduction), {100 * reduction**k: [] for k in range(5)}
    for number, curve in enumerate(curves):
        pruned.start(number)
        for nth, score in enumerate(curve, start=1):
            scores = rungs.get(100 * nth)
            expected = scores is not None and not passes(scores, score, reduction)
            assert pruned.should_stop(number, point(100 * nth, score)) == expected
            if scores is not None:
                scores.append(score)
            if expected:
                break


def test_trials_of_a_replayed_record_are_compared_with() -> None:
    trial = Trial(number=0, values=draws(1)[0], state="finished", curve=[point(100, 30.0), point(200, 31.0)])
    resumed = study([trial])
    resumed.start(1)
    resumed.start(2)
    assert resumed.should_stop(1, point(100, 29.0))
    assert not resumed.should_stop(2, point(100, 30.5))


# ---- importance


def scored(count: int, score, seed: int = 0) -> list[Trial]:  # type: ignore[no-untyped-def]
    states = itertools.cycle(("finished", "stopped"))
    return [
        Trial(number=n, values=v, state=next(states), curve=[point(100, score(v))])
        for n, v in enumerate(draws(count, seed))
    ]


@pytest.mark.parametrize("name", ["critic_updates", "generator_lr", "objective"])
def test_the_parameter_that_decides_is_the_most_important(name: str) -> None:
    order = ("wgan-gp", "vanilla", "wasserstein")
    score = {
        "critic_updates": lambda values: values["critic_updates"],
        "generator_lr": lambda values: -(np.log10(values["generator_lr"] / 3e-4) ** 2),
        "objective": lambda values: order.index(values["objective"]) + 0.1 * values["dropout"],
    }[name]
    shares = importances(SPACE, scored(40, score), "psnr")
    assert max(shares, key=lambda name: shares[name]) == name
    assert shares[name] > 0.5
    assert sum(shares.values()) == pytest.approx(1)


def test_one_outlier_does_not_change_the_importance() -> None:
    trials = scored(30, lambda values: values["critic_updates"])
    before = importances(SPACE, trials, "psnr")
    worst = min(trials, key=lambda trial: trial.score("psnr"))
    worst.curve[-1]["validation_psnr"] = -1000
    assert importances(SPACE, trials, "psnr") == before


def test_few_trials_or_points_outside_the_space_give_no_importance() -> None:
    few = scored(MIN_TRIALS - 1, lambda values: values["generator_lr"])
    outside = Trial(number=99, values={**few[0].values, "generator_lr": 0.7}, state="stopped", curve=few[0].curve)
    unscored = Trial(number=98, values=few[0].values)
    assert importances(SPACE, [*few, outside, unscored], "psnr") == {}
    assert importances(SPACE, scored(MIN_TRIALS, lambda values: values["generator_lr"]), "psnr") != {}
