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
class Config:
    name: str
    folder: Path
    score: float = 1.0
    stop_at: int = 0
    fails_at: int = 0
    error: str = ""
    dies_at: int = 0
    more: Any = None


class Caller:
    """Hands out the trials of a list and records its calls; stops a trial at its `stop_at`."""

    def __init__(self, folder: Path, *changes: dict[str, Any]) -> None:
        made = [Config(f"s-{n}", folder, **change) for n, change in enumerate(changes)]
        self.configs = {config.name: config for config in made}
        self.reports: dict[str, list[tuple[int, float]]] = {}
        self.ends: dict[str, str] = {}
        self.most_at_once = 0
        self._waiting = made
        self._running: set[str] = set()

    def ask(self) -> Config:
        name = self._waiting[0].name
        self.reports[name] = []
        self._running.add(name)
        self.most_at_once = max(self.most_at_once, len(self._running))
        return self._waiting.pop(0)

    def reported(self, name: str, metrics: Mapping[str, Any]) -> bool:
        self.reports[name].append((metrics["seen"], metrics["score"]))
        stopped = metrics["seen"] == self.configs[name].stop_at
        self._running -= {name} if stopped else set()
        return stopped

    def ended(self, name: str, error: Exception | None) -> None:
        assert name not in self.ends
        self._running.remove(name)
        self.ends[name] = f"{type(error).__name__}: {error}" if error else ""


def reporting(config: Config, report: Callable[[dict[str, Any]], None], _callbacks: Any) -> None:
    """Reports four times, or fails as its config says."""
    (config.folder / f"{config.name}-{os.getpid()}").touch()
    errors = {"diverged": Diverged("not finite"), "input": InputError("no bucket"), "bug": KeyError("x")}
    for nth in range(1, 5):
        if nth == config.fails_at:
            raise errors[config.error]
        if nth == config.dies_at:
            os.kill(os.getpid(), 9)
        report({"seen": 100 * nth, "score": config.score})
        time.sleep(0.2)


@pytest.mark.usefixtures("four_cpus")
def test_trials_that_are_stopped_or_fail_leave_the_others_running(tmp_path: Path) -> None:
    """Including one whose process is killed."""
    caller = Caller(
        tmp_path,
        {"score": 3.0},
        {"stop_at": 200},
        {"fails_at": 3, "error": "diverged"},
        {"fails_at": 1, "error": "bug"},
        {"dies_at": 2},
        {"score": 4.0, "more": {"generator/a": {"grid_search": [1]}}},
    )
    run_trials(reporting, caller, count=6, max_concurrent=2)
    assert caller.reports["s-0"] == [(100, 3.0), (200, 3.0), (300, 3.0), (400, 3.0)]
    assert caller.reports["s-1"] == [(100, 1.0), (200, 1.0)]
    assert caller.reports["s-5"][-1] == (400, 4.0)
    assert "s-1" not in caller.ends, "the caller stopped it, so it knows"
    assert caller.ends["s-0"] == caller.ends["s-5"] == ""
    assert caller.ends["s-2"] == "Diverged: not finite"
    assert caller.ends["s-3"] == "KeyError: 'x'"
    assert caller.ends["s-4"].startswith("ActorDiedError")
    assert len(list(tmp_path.iterdir())) == 6, "no trial was started twice"
    assert caller.most_at_once == 2


@pytest.mark.usefixtures("four_cpus")
def test_an_input_error_of_a_trial_ends_the_search_and_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caller = Caller(tmp_path, {"fails_at": 1, "error": "input"}, {}, {})
    with pytest.raises(InputError, match=r"^no bucket$"):
        run_trials(reporting, caller, count=3, max_concurrent=1)
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
        run_trials(reporting, SimpleNamespace(**calls | {method: lost}), count=3, max_concurrent=1)
    assert caller.ends == {}
    assert len(list(tmp_path.iterdir())) == (0 if method == "ask" else 1), "no further trial was started"
