"""The cost model: values computed by hand, and recovered by the fit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cost import Cost, fit


def test_seconds_of_an_update_match_hand_computed_values() -> None:
    cost = Cost(compute_s=2.0, gradient_bytes=8e6, last=0.25, hiding=0.5, messages=3, latency_s=0.01)
    assert cost.seconds(1, 1e6) == 2.0
    # 8 MB x 2 x 3/4 at 1 MB/s, of which half of 2 s are hidden, and three messages of six steps.
    assert cost.seconds(4, 1e6) == pytest.approx(2 + 12 - 1 + 3 * 6 * 0.01)
    # At 24 MB/s it is half a second, of which all can be hidden but the last quarter.
    assert cost.seconds(4, 24e6) == pytest.approx(2 + 0.125 + 3 * 6 * 0.01)
    assert cost.efficiency(4, 1e6) == pytest.approx(2 / 13.18)


def test_most_ranks_at_an_efficiency() -> None:
    cost = Cost(compute_s=1.0, gradient_bytes=0, last=0, hiding=0, messages=1, latency_s=0.01)
    # 1 / (1 + 0.02 (W - 1)) is at least a half up to 51 ranks.
    assert cost.most_ranks(0.5, 1e9) == 32
    assert cost.most_ranks(0.5, 1e9, limit=8) == 8
    assert Cost(compute_s=1.0, gradient_bytes=1e9, last=1.0, hiding=1.0).most_ranks(0.9, 1e6) == 1


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 1024), st.floats(1e6, 1e11))
def test_an_update_takes_at_least_its_computing_and_its_sending(
    last: float, hiding: float, ranks: int, rate: float
) -> None:
    cost = Cost(compute_s=1.0, gradient_bytes=1e8, last=last, hiding=hiding)
    assert cost.seconds(ranks, rate) >= max(1.0, cost.sending(ranks, rate)) * (1 - 1e-12)


@given(st.floats(0.01, 10), st.floats(0, 1), st.floats(0, 1), st.integers(2, 16))
def test_the_fit_recovers_the_parameters(compute_s: float, last: float, hiding: float, ranks: int) -> None:
    truth = Cost(compute_s=compute_s, gradient_bytes=1e8, last=last, hiding=hiding)
    rates = [1e6, 1e7, 1e8, 1e9]
    seconds = [truth.seconds(ranks, rate) for rate in rates]
    found, left = fit(replace(truth, hiding=0), ranks, rates, seconds)
    assert max(map(abs, left)) < 1e-2
    assert found.seconds(ranks, 5e6) == pytest.approx(truth.seconds(ranks, 5e6), rel=1e-2)
