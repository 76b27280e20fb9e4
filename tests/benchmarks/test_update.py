"""A tiny measurement of updates: all figures are present and consistent."""

import pytest

from benchmarks import update
from benchmarks.update import Settings, measure
from cluster.errors import InputError


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_measured_that_was_asked_for(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(update.CEILING_SIDE, "cpu", 64)
    monkeypatch.setattr(update, "COPIED", {"cpu": 1000, "cuda": 1000})
    wanted = Settings(recipe="demo", image_size=32, batch_size=1, steps=1, rounds=1, memory=False, precision=precision)
    figures = measure(wanted)
    assert figures["dtype"] == precision
    assert figures["computation"].startswith(f"{precision}, ")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision is 'half'"):
        measure(Settings(precision="half"))


def test_figures_are_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(update.CEILING_SIDE, "cpu", 64)
    monkeypatch.setitem(update.CEILING_SIDE, "cuda", 64)
    monkeypatch.setattr(update, "COPIED", {"cpu": 1000, "cuda": 1000})
    figures = measure(Settings(recipe="demo", image_size=32, batch_size=2, steps=1, rounds=2))
    speeds = figures["images_per_second"], figures["naive_images_per_second"]
    assert figures["times_faster"] == pytest.approx(speeds[0] / speeds[1])
    assert figures["images_per_second"] == pytest.approx(2 / figures["seconds_per_update"])
    assert figures["share_of_ceiling"] == pytest.approx(figures["floor_seconds"] / figures["seconds_per_update"])
    assert len(figures["times_faster_of_each_round"]) == 2
    assert figures["gflop_per_update"] < figures["naive_gflop_per_update"]
    assert all(10e6 < figures[f"{kind}_peak_bytes"] < 4e9 for kind in ("ours", "naive"))
