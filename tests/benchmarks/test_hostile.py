"""The campaign of hostile inputs: some of each target, and that it counts what it should."""

import os
import random

import pytest

from benchmarks import hostile
from benchmarks.hostile import TARGETS, campaign, mutated, mutated_json, outcome
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


def test_an_unexpected_exception_and_a_refusal_in_several_lines_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        raise error

    errors = {0: InputError("x: wrong; fix it"), 1: InputError("two\nlines"), 2: KeyError("x")}
    monkeypatch.setitem(TARGETS, "recipe", lambda draw: fail(errors[draw.seed_of_test]))  # type: ignore[attr-defined]

    class Seeded(random.Random):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.seed_of_test = int(text.split()[1])

    monkeypatch.setattr(random, "Random", Seeded)
    assert outcome("recipe", 0) == ""
    assert outcome("recipe", 1).startswith("not one line")
    assert outcome("recipe", 2) == "KeyError: 'x'"


def test_memory_above_the_limit_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "MAX_MB", 50)
    monkeypatch.setitem(TARGETS, "recipe", lambda draw: bytes(bytearray(os.urandom(1) * 100_000_000)) and None)
    assert "MB" in outcome("recipe", 0)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="no-such-target"):
        campaign(hostile.Settings(targets=("no-such-target",)))
