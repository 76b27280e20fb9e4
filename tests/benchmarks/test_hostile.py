"""The campaign of hostile inputs: some of each target, and that it counts what it should."""

import os
import random
from collections.abc import Sequence

import pytest

from benchmarks import hostile
from benchmarks.hostile import TARGETS, Failure, campaign, outcome
from benchmarks.mutation import mutated, mutated_json
from cluster.errors import InputError

QUICK = 25  # inputs of each target


def unchanged(data: bytes, draw: random.Random) -> bytes:
    return data


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_valid_input_is_accepted_and_damaged_ones_are_at_most_refused(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [what for seed in range(QUICK) if (what := outcome(target, seed))] == []
    monkeypatch.setattr(hostile, "mutated", unchanged)
    monkeypatch.setattr(hostile, "mutated_json", unchanged)
    TARGETS[target](random.Random(0))


def test_a_seed_is_always_the_same_mutation_and_most_change_something() -> None:
    data = b'{"a": [1, {"b": "c"}], "d": null}'
    for mutate in (mutated, mutated_json):
        results = [mutate(data, random.Random(seed)) for seed in range(200)]
        assert results == [mutate(data, random.Random(seed)) for seed in range(200)]
        assert len(set(results)) > 100


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("x: wrong; fix it"), ""),
        (InputError("two\nlines"), "not one line"),
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_only_a_refusal_in_one_line_is_no_failure(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(draw: random.Random) -> None:
        raise error

    monkeypatch.setitem(TARGETS, "recipe", fail)
    found = outcome("recipe", 0)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def dying(target: str, seeds: Sequence[int]) -> list[Failure]:
    if 1 in seeds:
        os._exit(1)
    return []


@pytest.mark.soak  # a process for each input
def test_a_process_that_dies_is_a_failure_of_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "outcomes", dying)
    failures = campaign(hostile.Settings(inputs=3, targets=("recipe",)))
    assert failures == [Failure(target="recipe", seed=1, what="the process died")]


def test_memory_above_the_limit_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "MAX_MB", 50)
    monkeypatch.setitem(TARGETS, "recipe", lambda draw: bytes(bytearray(os.urandom(1) * 100_000_000)) and None)
    assert "MB" in outcome("recipe", 0)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="no-such-target"):
        campaign(hostile.Settings(targets=("no-such-target",)))
