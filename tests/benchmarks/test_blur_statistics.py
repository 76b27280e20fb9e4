"""Statistics of blur: known pairs, a small measurement of photographs and a GOPRO tree, and the sheet."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmarks.blur_statistics import COLUMNS, SHEET_BYTES, Settings, gradient_ratio, measure, psnr
from cluster.errors import InputError
from tests.datasets import picture

KINDS = ("blur", "blur_gamma", "sharp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("photos/a.png", "photos/b.png", *(f"gopro/train/s/{kind}/1.png" for kind in KINDS)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture(len(name), 64, 80)).save(tmp_path / name)
    return tmp_path


def test_known_pairs_have_known_figures() -> None:
    sharp = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(sharp + np.uint8(10), sharp) == pytest.approx(10 * np.log10(255**2 / 100))
    assert psnr(sharp, sharp) == 99
    ramp = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[:, None, None], (20, 20, 3))
    assert gradient_ratio(ramp // 2, ramp) == pytest.approx(0.5)


def test_every_source_is_measured_and_drawn(folder: Path) -> None:
    sheet = folder / "sheet.jpg"
    figures = measure(
        Settings(photos=str(folder / "photos"), gopro=str(folder / "gopro"), variants=3, sheet=str(sheet))
    )
    counts = {"blur": 1, "blur_gamma": 1, "paper": 6, "camera": 6, "shake": 6, "frames": 6}
    assert {name: figures[f"{name} pairs"] for name in counts} == counts
    for name in ("paper", "shake", "frames"):
        decibels, ratios = figures[f"{name} PSNR dB"], figures[f"{name} gradients"]
        assert decibels == sorted(decibels)
        assert 5 < decibels[0] <= decibels[-1] <= 99
        assert 0 < ratios[0] < 1
    assert sheet.stat().st_size <= SHEET_BYTES
    assert PIL.Image.open(io.BytesIO(sheet.read_bytes())).width % COLUMNS == 0


def test_a_folder_that_is_no_gopro_tree_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="--gopro"):
        measure(Settings(photos=str(folder / "photos"), gopro=str(folder / "photos"), variants=1))
