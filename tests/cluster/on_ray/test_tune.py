"""Trials under Ray Tune: which run, which are stopped or fail alone, and which errors end the whole search."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cluster.errors import Diverged, InputError
from cluster.on_ray.tune import run_trials


@pytest.fixture(scope="module")
def four_cpus() -> Any:
    ray.init(num_cpus=4, logging_level="WARNING", log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Run:
    """Reports four times, or fails as its fields say."""

    number: int
    folder: Path
    stop_at: int = 0
    fails_at: int = 0
    error: str = ""
    dies_at: int = 0

    def __call__(self, report: Callable[[dict[str, Any]], None], _callbacks: Any) -> None:
        (self.folder / f"{self.number}-{os.getpid()}").touch()
        errors = {"diverged": Diverged("not finite"), "input": InputError("no bucket"), "bug": KeyError("x")}
        for nth in range(1, 5):
            if nth == self.fails_at:
                raise errors[self.error]
            if nth == self.dies_at:
                os.kill(os.getpid(), 9)
            report({"seen": 100 * nth})
            time.sleep(0.2)


class Caller:
    """Hands out trials and records its calls; stops a trial at its `stop_at`."""

    def __init__(self, folder: Path, *changes: dict[str, Any]) -> None:
        self.runs = [Run(number, folder, **change) for number, change in enumerate(changes)]
        self.reports: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        self.most_at_once = 0
        self._running: set[int] = set()

    def ask(self) -> tuple[int, Run]:
        number = len(self.reports)
        self.reports[number] = []
        self._running.add(number)
        self.most_at_once = max(self.most_at_once, len(self._running))
        return number, self.runs[number]

    def reported(self, number: int, metrics: Mapping[str, Any]) -> bool:
        self.reports[number].append(metrics["seen"])
        stopped = metrics["seen"] == self.runs[number].stop_at
        self._running -= {number} if stopped else set()
        return stopped

    def ended(self, number: int, error: Exception | None) -> None:
        assert number not in self.ends
        self._running.remove(number)
        self.ends[number] = f"{type(error).__name__}: {error}" if error else ""


@pytest.mark.usefixtures("four_cpus")
def test_trials_that_are_stopped_or_fail_leave_the_others_running(tmp_path: Path) -> None:
    """Including one whose process is killed."""
    fails = [{"fails_at": 3, "error": "diverged"}, {"fails_at": 1, "error": "bug"}, {"dies_at": 2}]
    caller = Caller(tmp_path, {}, {"stop_at": 200}, *fails, {})
    run_trials(caller, count=6, max_concurrent=2)
    assert caller.reports[0] == caller.reports[5] == [100, 200, 300, 400]
    assert caller.reports[1] == [100, 200]
    assert set(caller.ends) == {0, 2, 3, 4, 5}, "the caller stopped 1, so it knows"
    assert caller.ends[0] == caller.ends[5] == ""
    assert caller.ends[2] == "Diverged: not finite"
    assert caller.ends[3] == "KeyError: 'x'"
    assert caller.ends[4].startswith("ActorDiedError")
    assert len(list(tmp_path.iterdir())) == 6, "no trial was started twice"
    assert caller.most_at_once == 2


@pytest.mark.usefixtures("four_cpus")
def test_an_input_error_of_a_trial_ends_the_search_and_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caller = Caller(tmp_path, {"fails_at": 1, "error": "input"}, {}, {})
    with pytest.raises(InputError, match=r"^no bucket$"):
        run_trials(caller, count=3, max_concurrent=1)
    assert caller.ends == {}, "the trial has not ended: the next run of the search resumes it"
    assert len(list(tmp_path.iterdir())) == 1
    assert capsys.readouterr().out == "", "only the caller prints"


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize("method", ["ask", "reported", "ended"])
def test_an_error_of_the_caller_ends_the_search_and_is_raised(tmp_path: Path, method: str) -> None:
    caller = Caller(tmp_path, {}, {}, {})
    calls: dict[str, Callable[..., Any]] = {"ask": caller.ask, "reported": caller.reported, "ended": caller.ended}

    def lost(*_: Any) -> None:
        raise InputError("lease lost")

    with pytest.raises(InputError, match=r"^lease lost$"):
        run_trials(SimpleNamespace(**calls | {method: lost}), count=3, max_concurrent=1)
    assert caller.ends == {}
    assert len(list(tmp_path.iterdir())) == (0 if method == "ask" else 1), "no further trial was started"
