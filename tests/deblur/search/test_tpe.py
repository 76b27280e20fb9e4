"""Configurations by TPE: from the record alone, within the space, near those that did well."""

import numpy as np
import pytest

from deblur.search import tpe
from deblur.search.record import State, Trial
from deblur.search.space import Choices, Range, drawn, holds

SPACE = {
    "generator_lr": Range(1e-5, 1e-2, whole=False, logarithmic=True),
    "critic_updates": Range(1, 8, whole=True, logarithmic=False),
    "objective": Choices(("wgan-gp", "vanilla")),
}


def trial(number: int, values: dict, state: State = "finished") -> Trial:
    score = 30 - abs(np.log10(values["generator_lr"] / 1e-3)) - (values["objective"] == "vanilla")
    point = {"images_seen": 100, "validation_psnr": score, "validation_ssim": 1 - score / 100}
    return Trial(number=number, values=values, state=state, curve=[point])


def search(count: int, seed: int) -> list[Trial]:
    """One trial at a time."""
    found: list[Trial] = []
    for number in range(count):
        found.append(trial(number, tpe.drawn(SPACE, found, "psnr", seed, number)))
    return found


def test_one_seed_draws_the_same_and_another_others_and_all_lie_in_the_space() -> None:
    first = search(15, seed=0)
    assert search(15, seed=0) == first
    assert [t.values for t in search(15, seed=1)] != [t.values for t in first]
    assert all(holds(SPACE, t.values) for t in first)
    assert len({str(t.values) for t in first}) == 15


def test_later_trials_are_near_the_good_ones() -> None:
    found = [search(40, seed) for seed in range(3)]
    scores = np.array([[t.score("psnr") for t in trials] for trials in found])
    assert scores[:, 25:].mean() > scores[:, :10].mean() + 0.4


def test_the_metric_decides() -> None:
    """SSIM is turned round here: it is best where PSNR is worst."""
    known = [trial(number, drawn(SPACE, 0, number)) for number in range(40)]
    rates = {m: [tpe.drawn(SPACE, known, m, 0, n)["generator_lr"] for n in range(20)] for m in ("psnr", "ssim")}
    assert np.median(rates["psnr"]) > 5 * np.median(rates["ssim"])


@pytest.mark.parametrize("state", ["stopped", "running", "failed"])
def test_trials_of_every_state_and_points_outside_are_no_trouble(state: State) -> None:
    known = [trial(number, drawn(SPACE, 0, number), state) for number in range(12)]
    known.append(trial(12, {"generator_lr": 0.7, "critic_updates": 2, "objective": "wgan-gp"}))
    known.append(Trial(number=13, values=drawn(SPACE, 0, 13)))
    assert holds(SPACE, tpe.drawn(SPACE, known, "psnr", 0, 14))
