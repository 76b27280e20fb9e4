"""The arithmetic of scaling: by hand, and found again by the fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cost import Cost, fit


def test_the_seconds_of_an_update_by_hand() -> None:
    cost = Cost(compute_s=2.0, gradient_bytes=8e6, exposed=0.5, messages=3, latency_s=0.01)
    assert cost.seconds(1, 1e6) == 2.0
    # Half of 8 MB x 2 x 3/4 at 1 MB/s, and three messages of six steps.
    assert cost.seconds(4, 1e6) == pytest.approx(2 + 0.5 * 12 + 3 * 6 * 0.01)
    assert cost.efficiency(4, 1e6) == pytest.approx(2 / 8.18)


def test_where_the_efficiency_falls_below_a_share() -> None:
    cost = Cost(compute_s=1.0, gradient_bytes=1e6, exposed=0.0, messages=1, latency_s=0.01)
    # 1 / (1 + 0.02 (W - 1)) is at least a half up to 51 ranks.
    assert cost.most_ranks(0.5, 1e9) == 32
    assert cost.most_ranks(0.5, 1e9, limit=8) == 8
    assert Cost(compute_s=1.0, gradient_bytes=1e9, exposed=1.0).most_ranks(0.9, 1e6) == 1


@given(st.floats(0.01, 10), st.floats(0, 1), st.integers(2, 16), st.lists(st.floats(1e6, 1e9), min_size=2, unique=True))
def test_the_fit_finds_what_the_times_were_made_of(
    compute_s: float, exposed: float, ranks: int, rates: list[float]
) -> None:
    if max(rates) < 1.5 * min(rates):
        return
    truth = Cost(compute_s=compute_s, gradient_bytes=1e8, exposed=exposed)
    found, left = fit(1e8, ranks, rates, [truth.seconds(ranks, rate) for rate in rates])
    assert found.compute_s == pytest.approx(compute_s, rel=1e-3, abs=1e-3)
    assert found.exposed == pytest.approx(exposed, abs=1e-6)
    assert max(map(abs, left)) < 1e-3
