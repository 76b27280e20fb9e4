"""The chaos campaign: its plans and figures; and as a soak test some seeds on a real cluster."""

import dataclasses
from collections import Counter

import pytest

from benchmarks.chaos import FAULTS, Fault, Result, Settings, draw_plan, longest_gaps, run_with_faults, stage, summary
from cluster.rehearsal.network import can_isolate

SOAK_SEEDS = 6
KEPT = Result(
    seed=0,
    faults=(Fault(kind="kill-rank", update=30, seconds=40.0),),
    starts=1,
    ids_lost=0,
    ids_repeated=0,
    same_weights=True,
    unexplained=(),
    gaps_s=(12.5,),
)


def test_a_seed_is_always_the_same_plan_and_all_faults_come_up() -> None:
    settings = Settings(updates=200)
    plans = [draw_plan(seed, list(FAULTS), settings) for seed in range(200)]
    assert plans == [draw_plan(seed, list(FAULTS), settings) for seed in range(200)]
    assert {len(plan) for plan in plans} == {1, 2, 3}
    assert Counter(fault.kind for plan in plans for fault in plan).keys() == FAULTS.keys()
    for plan in plans:
        assert sorted(fault.update for fault in plan) == [fault.update for fault in plan]
        assert all(25 <= fault.update < 175 and 30 <= fault.seconds <= 90 for fault in plan)


def test_the_gap_of_a_fault_is_the_longest_until_the_next_one() -> None:
    updates = [0.0, 1.0, 2.0, 9.0, 10.0, 11.0, 31.0, 32.0]
    assert list(longest_gaps(updates, [2.5, 11.5])) == [7.0, 20.0]
    assert list(longest_gaps(updates, [31.5])) == [1.0]
    assert list(longest_gaps(updates, [40.0])) == [0.0]  # after the last update


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        ({"ids_lost": 1}, "ids_lost"),
        ({"ids_repeated": 1}, "ids_repeated"),
        ({"same_weights": False}, "other_weights"),
        ({"unexplained": ("Traceback",)}, "unexplained_ends"),
    ],
)
def test_a_broken_promise_is_counted_and_its_run_listed(change: dict[str, object], figure: str) -> None:
    kept = summary([KEPT, KEPT])
    assert kept["seeds"] == 2
    assert kept["faults"] == {"kill-rank": 2}
    assert kept[figure] == 0
    assert kept["broken"] == []
    broken = summary([KEPT, dataclasses.replace(KEPT, **change)])  # type: ignore[arg-type]
    assert broken[figure] == 1
    assert len(broken["broken"]) == 1  # type: ignore[arg-type]


@pytest.mark.soak
@pytest.mark.cluster
@pytest.mark.timeout(1500)
def test_runs_with_random_faults_keep_their_promises() -> None:
    settings = Settings(updates=200, pause_s=(10.0, 20.0))
    kinds = [kind for kind in FAULTS if kind != "cut-link" or can_isolate()]
    with stage(settings.updates) as (bench, proxy):
        results = [run_with_faults(bench, proxy, seed, draw_plan(seed, kinds, settings)) for seed in range(SOAK_SEEDS)]
    print(summary(results))
    assert all(result.kept_promises for result in results), summary(results)
