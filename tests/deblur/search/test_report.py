"""The report of a search: complete, self-contained, and with names escaped."""

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from deblur.config import recipes
from deblur.search import report as search_report
from deblur.search.record import Search, Trial
from deblur.search.space import space_of
from deblur.search.study import MIN_TRIALS, Study
from deblur.search.table import LiveTable

SPACE = space_of(recipes.demo(), ["flip=true,false", "generator.dropout=0:0.5"])
EVIL = "ValueError: <script>alert(1)</script> & $x$"


def search(folder: Path, count: int) -> Search:
    """Trials of which the second is hopeless, the third failed and the fourth has not reported yet."""
    found, study = Search(str(folder / "s$1$"), recipes.demo(), "psnr", {}), Study(SPACE, "psnr", "random", 0, 1, 4)
    for number in range(count):
        trial = Trial(number=number, values=study.start(number), state="finished")
        for seen in (100, 200):
            psnr = 3.0 if number == 1 else 25 + number / 10 + seen / 1000
            point = {"validation_psnr": psnr, "validation_ssim": 0.5, "validation_blurred_psnr": 24.0}
            trial.add({"images_seen": seen, "images_per_second": 9.0, "ranks": 1, "threads_per_rank": 1, **point})
        if number in (2, 3):
            trial.state, trial.reason, trial.curve = ("failed", EVIL, []) if number == 2 else ("running", "", [])
        found.trials.append(trial)
    return found


@pytest.mark.parametrize(("count", "metric"), [(0, "psnr"), (4, "ssim"), (MIN_TRIALS + 3, "psnr")])
def test_page_and_picture_are_complete_at_any_time_of_a_search(tmp_path: Path, count: int, metric: str) -> None:
    found = search(tmp_path, count)
    found.metric = metric
    search_report.write(found, SPACE)
    page = (tmp_path / "s$1$/report.html").read_text()
    for trial in found.trials:
        assert found.name_of(trial) in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page), "self-contained"
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 2 + len(SPACE) + (count > MIN_TRIALS)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    with PIL.Image.open(io.BytesIO((tmp_path / "s$1$/report.png").read_bytes())) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 1000
    assert pixels.std() > 5, "something is drawn"


def test_an_outlier_does_not_hide_how_the_others_differ(tmp_path: Path) -> None:
    found = search(tmp_path, 8)
    lowest, highest = search_report.visible_range(found)
    assert 3.0 < lowest <= 24.0 < highest < 27.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_is_redrawn_on_a_terminal_and_rare_in_a_log(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    live, found = LiveTable(), search(tmp_path, 4)
    live.show(found, force=True)
    live.show(found)
    assert out.getvalue().count("s$1$-001") == (2 if terminal else 1)
    assert ("\x1b[6F\x1b[J" in out.getvalue()) == terminal, "drawn over the previous one: 1 + 5 lines"
    live.event("s$1$-004: starts")
    live.show(found, force=True)
    assert out.getvalue().count("\x1b[") == (2 if terminal else 0), "an event stays"
    assert max(map(len, out.getvalue().splitlines())) <= 80 or not terminal
