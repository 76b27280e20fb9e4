"""A tiny measurement of restoring: consistent figures, and the pixel counts of tiles."""

import pytest
import torch

from benchmarks import update
from benchmarks.restore import Settings, generator_of, growth, measure, operations, pixels_in_tiles
from tests.benchmarks.test_flops import done_by

CPU = torch.device("cpu")


def test_figures_are_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(update.CEILING_SIDE, "cpu", 64)
    monkeypatch.setitem(update.CEILING_SIDE, "cuda", 64)
    settings = Settings(recipe="demo", width=1024, height=64, tile=768, memory="64x64,256x256", rounds=1)
    figures = measure(settings)
    for way in ("tiled", "bfloat16"):
        ratio = figures["whole_images_per_second"] / figures[f"{way}_images_per_second"]
        assert figures[f"{way}_to_whole_seconds"] == pytest.approx(ratio)
        assert figures[f"{way}_levels_from_whole"]["mean"] < 1  # rounding: the demo's network has no norm
    assert figures["share_of_ceiling"] == pytest.approx(
        figures["gflop"] * figures["whole_images_per_second"] / figures["matmul_gflop_per_second"]
    )
    assert 0 < figures["peak_bytes"]["64x64"] < figures["peak_bytes"]["256x256"]


def test_operations_and_pixels_match_the_forward_passes() -> None:
    plain, normed = generator_of("demo", CPU), generator_of("paper", CPU)
    whole = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        assert operations(plain, (96, 64)) == done_by(lambda: plain(whole))
    assert pixels_in_tiles((96, 64), 768, normed) == 96 * 64
    # Two tiles of 768 columns, each with the rows of the picture; and once more for the statistics.
    assert pixels_in_tiles((1024, 64), 768, plain) == (768 + 768) * 64
    assert pixels_in_tiles((1024, 64), 768, normed) == (768 + 768 + 1024) * 64


def test_growth_compares_pictures_of_one_mode_only() -> None:
    peaks = {"1000x1000": 3_000, "2000x1000": 7_000, "3000x2000": 500, "3000x3000": 560}
    assert growth(peaks, tiled=False) == 4_000 / 1_000_000
    assert growth(peaks, tiled=True) == 60 / 3_000_000
    assert growth({"64x64": 1, "3000x3000": 2}, tiled=True) is None
