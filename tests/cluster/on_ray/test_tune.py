"""Trials under Ray Tune: who is started, ended early, heard, and what ends the whole search."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Diverged, InputError
from cluster.on_ray import tune as searches
from cluster.on_ray.tune import Reporter, Rungs, Trials, search

RUNGS = Rungs(clock="seen", metric="score", first=100, reduction=2, end=400)


@pytest.fixture(scope="module")
def four_cpus() -> Any:
    ray.init(num_cpus=4, logging_level="WARNING", log_to_driver=False)
    yield
    ray.shutdown()


class Caller:
    """Asks for the trials of a list, and keeps what it is told."""

    def __init__(self, configurations: list[dict[str, Any]]) -> None:
        self.heard: dict[str, list[tuple[int, float]]] = {}
        self.ends: dict[str, str] = {}
        self._waiting = list(configurations)
        self.trials = Trials(ask=self.ask, reported=self.reported, ended=self.ended)

    def ask(self) -> dict[str, Any] | None:
        if not self._waiting:
            return None
        self.heard[self._waiting[0]["name"]] = []
        return self._waiting.pop(0)

    def reported(self, name: str, metrics: Mapping[str, Any]) -> None:
        self.heard[name].append((metrics["seen"], metrics["score"]))

    def ended(self, name: str, error: Exception | None) -> None:
        self.ends[name] = f"{type(error).__name__}: {error}" if error else ""


def reporting(configuration: dict[str, Any], reporter: Reporter) -> None:
    """Says what it is told to say, and fails where it is told to."""
    Path(configuration["folder"], f"{configuration['name']}-{os.getpid()}").touch()
    for nth in range(1, 5):
        if nth == configuration.get("fails_at"):
            raise {"diverged": Diverged("not finite"), "input": InputError("no bucket"), "bug": KeyError("x")}[
                configuration["with"]
            ]
        if nth == configuration.get("dies_at"):
            os.kill(os.getpid(), 9)
        reporter.report({"seen": 100 * nth, "score": configuration["score"]})
        time.sleep(0.2)


def several(folder: Path, *changes: dict[str, Any]) -> Caller:
    made = [{"name": f"s/{n}", "score": 1.0, "folder": str(folder)} | change for n, change in enumerate(changes)]
    return Caller([{**one, "name": one["name"].replace("/", "-")} for one in made])


@pytest.mark.usefixtures("four_cpus")
def test_trials_that_lag_behind_or_fail_end_alone(tmp_path: Path) -> None:
    """Among them one whose process dies, and one that a search before has left far behind."""
    caller = several(
        tmp_path,
        {"score": 3.0},
        {"score": 2.0},
        {"score": 5.0, "fails_at": 3, "with": "diverged"},
        {"fails_at": 1, "with": "bug"},
        {"score": 5.0, "dies_at": 2},
        {"score": 4.0},
    )
    past = {"s-before": [{"seen": 100, "score": 2.5}, {"seen": 200, "score": 2.5}]}
    search(reporting, caller.trials, RUNGS, past, at_once=2)
    assert caller.heard["s-0"] == [(100, 3.0), (200, 3.0), (300, 3.0), (400, 3.0)]
    assert caller.heard["s-1"] == [(100, 2.0)], "the one before was better"
    assert caller.heard["s-5"][-1] == (400, 4.0)
    assert caller.ends["s-0"] == caller.ends["s-1"] == caller.ends["s-5"] == ""
    assert caller.ends["s-2"] == "Diverged: not finite"
    assert caller.ends["s-3"] == "KeyError: 'x'"
    assert caller.ends["s-4"].startswith("ActorDiedError: The actor died unexpectedly")
    assert len(list(tmp_path.iterdir())) == 6, "none was started twice"


@pytest.mark.usefixtures("four_cpus")
def test_what_would_befall_every_trial_ends_the_search_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caller = several(tmp_path, {"fails_at": 1, "with": "input"}, {}, {})
    with pytest.raises(InputError, match=r"^no bucket$"):
        search(reporting, caller.trials, RUNGS, {}, at_once=1)
    assert caller.ends == {}, "it has not ended, and is gone on with by the next start"
    assert len(list(tmp_path.iterdir())) == 1
    assert capsys.readouterr().out == "", "nothing but what the caller says"


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize("method", ["ask", "reported"])
def test_an_error_of_the_caller_ends_the_search(tmp_path: Path, method: str) -> None:
    caller = several(tmp_path, {}, {}, {})
    calls: dict[str, Callable[..., Any]] = {"ask": caller.ask, "reported": caller.reported, "ended": caller.ended}

    def lost(*_: Any) -> None:
        raise InputError("another start has taken this run over")

    with pytest.raises(InputError, match="another start"):
        search(reporting, Trials(**calls | {method: lost}), RUNGS, {}, at_once=1)
    assert caller.ends == {}


# ---- who goes on, against a plain reading of the paper (arXiv:1810.05934, algorithm 2)


class Plain:
    """At each rung a trial goes on if it is among the best 1/reduction of all that were there (the others wait not)."""

    def __init__(self, rungs: list[int], reduction: float) -> None:
        self.reduction = reduction
        self.found: dict[int, list[float]] = {rung: [] for rung in rungs}

    def goes_on(self, seen: int, score: float) -> bool:
        there = self.found.get(seen)
        if there is None:
            return True
        before = sorted(there)
        there.append(score)
        return not before or score >= np.percentile(before, 100 * (1 - 1 / self.reduction))


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=16, max_size=16), min_size=1, max_size=8),
    st.sampled_from([2, 4]),
    st.integers(0, 8),
)
def test_the_same_go_on_as_in_a_plain_reading_whoever_was_there_before(
    curves: list[list[int]], reduction: int, split: int
) -> None:
    rungs = Rungs(clock="seen", metric="score", first=100, reduction=reduction, end=1600)
    plain = Plain([100 * reduction**k for k in range(9) if 100 * reduction**k < 1600], reduction)
    ended: dict[str, list[dict[str, int]]] = {}
    expected: dict[str, int] = {}
    for number, curve in enumerate(curves):
        points = [{"seen": 100 * (nth + 1), "score": score} for nth, score in enumerate(curve)]
        stop = next((p["seen"] for p in points if not plain.goes_on(p["seen"], p["score"])), 1600)
        expected[f"t{number}"] = stop
        ended[f"t{number}"] = points[: stop // 100]
    before = dict(list(ended.items())[:split])
    scheduler = searches._scheduler(rungs, before)
    for name, stop in list(expected.items())[split:]:
        trial = searches.SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        decisions = [scheduler.on_trial_result(None, trial, dict(point)) for point in ended[name]]
        assert decisions[:-1] == ["CONTINUE"] * (len(decisions) - 1)
        assert decisions[-1] == ("CONTINUE" if stop == 1600 else "STOP")


def test_nobody_is_stopped_at_the_end_and_with_a_late_first_rung_nobody_at_all() -> None:
    for rungs in (RUNGS, Rungs(clock="seen", metric="score", first=400, reduction=2, end=400)):
        scheduler = searches._scheduler(rungs, {"good": [{"seen": 400, "score": 9}]})
        trial = searches.SimpleNamespace(trial_id="bad")
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"seen": 400, "score": 1}) == "CONTINUE"
