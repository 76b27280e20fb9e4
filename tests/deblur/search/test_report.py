"""The page and the picture of a search: all trials on them, nothing from elsewhere, nothing that a name can break."""

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from deblur.config import recipes
from deblur.search import report as search_report
from deblur.search.importance import ENOUGH
from deblur.search.record import Search, Trial
from deblur.search.space import drawn, space_of
from deblur.search.table import Shown

SPACE = space_of(recipes.demo(), ["flip=true,false", "generator.dropout=0:0.5"])
EVIL = "ValueError: <script>alert(1)</script> & $x$"


def search(folder: Path, count: int) -> Search:
    """Trials of which the second is hopeless, the third failed and the fourth has not reported yet."""
    found = Search(str(folder / "s$1$"), recipes.demo(), "psnr", {})
    for number in range(count):
        trial = Trial(number=number, values=drawn(SPACE, 0, number), state="finished")
        for seen in (100, 200):
            psnr = 3.0 if number == 1 else 25 + number / 10 + seen / 1000
            point = {"validation_psnr": psnr, "validation_ssim": 0.5, "validation_blurred_psnr": 24.0}
            trial.add({"images_seen": seen, "images_per_second": 9.0, "ranks": 1, "threads_per_rank": 1, **point})
        if number in (2, 3):
            trial.state, trial.reason, trial.curve = ("failed", EVIL, []) if number == 2 else ("running", "", [])
        found.trials.append(trial)
    return found


@pytest.mark.parametrize(("count", "metric"), [(0, "psnr"), (4, "ssim"), (ENOUGH + 3, "psnr")])
def test_page_and_picture_are_whole_at_any_time_of_a_search(tmp_path: Path, count: int, metric: str) -> None:
    found = search(tmp_path, count)
    found.metric = metric
    search_report.write(found, SPACE)
    page = (tmp_path / "s$1$/report.html").read_text()
    for trial in found.trials:
        assert found.name_of(trial) in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page), "nothing from elsewhere"
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 2 + len(SPACE) + (count > ENOUGH)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    with PIL.Image.open(io.BytesIO((tmp_path / "s$1$/report.png").read_bytes())) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 1000
    assert pixels.std() > 5, "something is drawn"


def test_a_hopeless_trial_does_not_hide_how_the_others_differ(tmp_path: Path) -> None:
    found = search(tmp_path, 8)
    lowest, highest = search_report._shown(found)
    assert 3.0 < lowest <= 24.0 < highest < 27.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_one_table_and_a_log_has_few(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    shown, found = Shown(), search(tmp_path, 4)
    shown.table(found, at_once=True)
    shown.table(found)
    assert out.getvalue().count("s$1$-001") == (2 if terminal else 1)
    assert ("\x1b[6F\x1b[J" in out.getvalue()) == terminal, "it is drawn over the one before: 1 + 5 lines"
    shown.now("s$1$-004: starts")
    shown.table(found, at_once=True)
    assert out.getvalue().count("\x1b[") == (2 if terminal else 0), "an event stays"
    assert max(map(len, out.getvalue().splitlines())) <= 80 or not terminal
