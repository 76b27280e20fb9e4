"""The reports of a search: complete, self-contained, and with names escaped."""

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from deblur.search import report
from deblur.search.record import Search
from deblur.search.space import space_of
from deblur.search.study import MIN_TRIALS, Study
from tests.deblur.search.searches import DEMO, search, trial

SPACE = space_of(DEMO, ["flip=true,false", "generator.dropout=0:0.5"])
EVIL = "ValueError: <script>alert(1)</script> & $x$"


def searched(folder: Path, count: int, metric: str = "psnr") -> Search:
    """Trials of which the second is hopeless, the third failed and the fourth has not reported yet."""
    found = search(folder, space=SPACE, name="s_1", metric=metric)
    study = Study(found.settings, SPACE)
    for number in range(count):
        curve = (3.0, 3.0) if number == 1 else (25 + number / 10, 25.1 + number / 10)
        found.trials.append(trial(number, "finished", *curve, **study.start(number)))
    for one, state, reason in zip(found.trials[2:], ("failed", "running"), (EVIL, ""), strict=False):
        one.state, one.reason, one.curve = state, reason, []
    return found


@pytest.mark.parametrize(("count", "metric"), [(0, "psnr"), (4, "ssim"), (MIN_TRIALS + 3, "psnr")])
def test_page_and_picture_are_complete_at_any_time_of_a_search(tmp_path: Path, count: int, metric: str) -> None:
    found = searched(tmp_path, count, metric)
    report.write(found)
    page = (tmp_path / "s_1/report.html").read_text()
    assert all(found.name_of(one) in page for one in found.trials)
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page), "self-contained"
    (drawing,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    ElementTree.fromstring(drawing)
    panels = {"images seen", "images per second", *SPACE, *["relative importance (PED-ANOVA)"] * (count > MIN_TRIALS)}
    assert {axes.get_xlabel() for axes in report.draw(found).axes} == panels
    assert all(f">{name}<" in drawing for name in panels)
    with PIL.Image.open(io.BytesIO((tmp_path / "s_1/report.png").read_bytes())) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 1000
    assert pixels.std() > 5, "something is drawn"


def test_axes_show_the_whole_range_of_a_parameter_and_no_outlier_of_the_scores(tmp_path: Path) -> None:
    axes = {axes.get_xlabel(): axes for axes in report.draw(searched(tmp_path, 8)).axes}
    for name in ("images seen", "generator_lr"):
        lowest, highest = axes[name].get_ylim()
        assert 3.0 < lowest <= 25.0 < 25.8 < highest < 27.0
    for name, distribution in SPACE.items():
        lowest, highest = axes[name].get_xlim()
        if name in ("flip", "objective"):
            assert [label.get_text() for label in axes[name].get_xticklabels()] == list(map(str, distribution.choices))
        else:
            assert lowest <= distribution.low < distribution.high <= highest
            assert highest < 3 * distribution.high


def test_the_table_has_every_trial_best_first_with_the_reason_of_a_failure(tmp_path: Path) -> None:
    failed = trial(2, "failed", reason="RanksFailed: out of memory")
    found = search(tmp_path, trial(0, "stopped", 25.0), trial(1, "finished", 26.0), failed, trial(3, "running"))
    lines = [line.split() for line in report.table(found).splitlines()]
    assert lines[0] == ["trial", "state", "images", "PSNR", "SSIM", "images/s", "critic_updates"]
    assert lines[1] == ["s-001", "finished", "100", "26.000", "0.6500", "9.0", "2"]
    assert [line[0] for line in lines[1:]] == ["s-001", "s-000", "s-002", "s-003"]
    assert report.table(found).splitlines()[3].endswith("3  RanksFailed: out of memory")
    assert report.counts(found) == "1 stopped, 1 finished, 1 failed, 1 running"
