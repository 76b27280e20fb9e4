"""The report's picture: what is drawn is found again in its axes and pixels."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from cluster.errors import InputError
from cluster.storage import open_store
from deblur import report
from deblur.report import draw_report, newest_sample, read_metrics

RED, GREEN, BLUE = (np.full((30, 40, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))
STRIP = [("blurred", RED), ("restored", GREEN), ("sharp", BLUE)]


def lines(count: int) -> list[dict[str, Any]]:
    """As a run writes them: every third line validates, and one number was not finite."""
    terms = ("content", "adversarial", "pixel", "penalty", "wasserstein")
    found: list[dict[str, Any]] = []
    for nth in range(1, count + 1):
        line: dict[str, Any] = {"images_seen": 16 * nth, "images_per_second": 8.0} | dict.fromkeys(terms, 1 / nth)
        if nth % 3 == 0:
            line |= {"validation_psnr": 20.0 + nth, "validation_blurred_psnr": 21.0}
        found.append(line)
    found[0]["penalty"] = None
    return found


def curves(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The lines that are drawn, by their labels."""
    figure = Figure()
    report._draw_curves(figure, metrics)
    return {line.get_label(): line for axes in figure.axes for line in axes.lines}


def test_every_curve_is_drawn_over_images_seen_where_its_key_is_reported() -> None:
    drawn = curves(lines(7))
    assert set(drawn) == {
        "content",
        "pixel",
        "adversarial",
        "penalty",
        "wasserstein",
        "restored",
        "blurred, as it came",
    }
    np.testing.assert_array_equal(drawn["restored"].get_xydata(), [(48, 23), (96, 26)])
    assert drawn["content"].get_xdata().tolist() == [16 * nth for nth in range(1, 8)]
    assert drawn["penalty"].get_xdata()[0] == 32  # null is left out, not drawn as 0


def test_the_blurred_inputs_own_psnr_is_dashed_and_no_two_curves_of_a_panel_look_alike() -> None:
    drawn = curves(lines(40))
    assert drawn["blurred, as it came"].get_linestyle() == "--"
    for panel in ({"content", "pixel"}, {"adversarial", "penalty", "wasserstein"}, {"restored", "blurred, as it came"}):
        assert len({drawn[name].get_linestyle() for name in panel}) == len(panel)
        assert len({drawn[name].get_color() for name in panel}) == len(panel)


def test_axes_name_what_they_show_and_its_unit() -> None:
    figure = Figure()
    report._draw_curves(figure, lines(3))
    assert {axes.get_xlabel() for axes in figure.axes} == {"images seen"}
    assert "PSNR in dB" in [axes.get_ylabel() for axes in figure.axes]


def test_the_picture_shows_the_strip_from_left_to_right_and_its_details_below(tmp_path: Path) -> None:
    draw_report(lines(4), STRIP, tmp_path / "deep" / "report.png", "a run")
    pixels = np.array(PIL.Image.open(tmp_path / "deep" / "report.png").convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    for nth, (_, picture) in enumerate(STRIP):
        column = pixels[:, width * (2 * nth + 1) // 6]
        assert (column[int(0.97 * height)] == picture[0, 0]).all()  # the detail, near the lower edge
        shown = (column == picture[0, 0]).all(axis=1).mean()
        assert shown > 0.4


def test_the_detail_is_where_the_sharp_picture_has_most_contrast() -> None:
    sharp = np.full((80, 120, 3), 100, np.uint8)
    sharp[20:40:2, 60:80] = 255
    assert report._detail(sharp) == (20, 60, 20)


def test_a_run_that_has_only_begun_is_drawn_too(tmp_path: Path) -> None:
    draw_report(lines(1), [], tmp_path / "report.png", "a run")
    assert PIL.Image.open(tmp_path / "report.png").width > 1000


def test_the_command_draws_the_run_with_its_newest_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "run-1")
    store.put("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines(4)).encode())
    for images_seen, strip in ((900, [BLUE, BLUE, BLUE]), (1000, [RED, GREEN, BLUE])):
        png = io.BytesIO()
        PIL.Image.fromarray(np.concatenate(strip, axis=1)).save(png, "PNG")
        store.put(f"samples/{images_seen}.png", png.getvalue())
    found = newest_sample(store)
    assert [label for label, _ in found] == ["blurred", "restored", "sharp"]
    for (_, picture), expected in zip(found, (RED, GREEN, BLUE), strict=True):
        np.testing.assert_array_equal(picture, expected)
    for out in (tmp_path / "run-1" / "report.png", tmp_path / "else.png"):
        flags = [] if out.name == "report.png" else ["--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "run-1"), *flags])
        report.main()
        assert PIL.Image.open(out).height > 900


def test_a_run_without_metrics_or_with_damaged_ones_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.jsonl: not there"):
        read_metrics(open_store(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"images_seen": 16}\n{"images_')
    with pytest.raises(InputError, match=r"metrics\.jsonl: not one JSON object per line"):
        read_metrics(open_store(tmp_path))
