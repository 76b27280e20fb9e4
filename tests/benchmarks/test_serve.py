"""A tiny measurement of serving: consistent figures, with and without HTTP."""

import pytest

from benchmarks.serve import Settings, measure


def test_figures_are_consistent() -> None:
    figures = measure(Settings(recipe="demo", width=48, height=32, clients=3, pictures=2, rounds=3))
    rates = {name: figures[f"{name}_pictures_per_second"] for name in ("batched", "alone", "http")}
    assert figures["alone_to_batched_seconds"] == pytest.approx(rates["batched"] / rates["alone"])
    assert figures["http_to_batched_seconds"] == pytest.approx(rates["batched"] / rates["http"])
    assert len(figures["alone_to_batched_seconds_of_each_round"]) == 3
    assert 1 <= figures["pictures_per_batch"] <= 3


def test_http_can_be_left_out() -> None:
    figures = measure(Settings(recipe="demo", width=24, height=16, clients=2, pictures=1, rounds=1, http=False))
    assert not [name for name in figures if "http" in name]
