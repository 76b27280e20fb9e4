"""The report's PNG and HTML page, checked by axes, pixels and elements."""

import base64
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from cluster.errors import InputError
from cluster.storage import join, open_store
from deblur import report
from deblur.plots.curves import PANELS, detail_of, draw_panel, report_png, thinned
from deblur.plots.run_report import RunData, differences, page, read, results

RED, GREEN, BLUE = (np.full((30, 40, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))
STRIP = [("blurred", RED), ("restored", GREEN), ("sharp", BLUE)]


def lines(count: int) -> list[dict[str, Any]]:
    """Like a run's metrics.jsonl: every third line is a validation, and one value was not finite."""
    terms = ("content", "adversarial", "pixel", "frequency", "penalty", "wasserstein")
    found: list[dict[str, Any]] = []
    for nth in range(1, count + 1):
        line: dict[str, Any] = {"images_seen": 16 * nth, "images_per_second": 8.0} | dict.fromkeys(terms, 1 / nth)
        line |= {"nonfinite": 1.0 if nth == 2 else 0.0, "restarts": 2, "updates_lost": 1500}
        if nth % 3 == 0:
            line |= {"validation_psnr": 20.0 + nth % 5, "validation_blurred_psnr": 21.0}
            line |= {"validation_ssim": 0.75, "validation_blurred_ssim": 0.5}
        found.append(line)
    found[0]["penalty"] = None
    return found


def write_run(url: Path | str, recipe: dict[str, Any], count: int = 7, samples: int = 0) -> str:
    """Writes the files of a run that a report reads."""
    store = open_store(url)
    store.put("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines(count)).encode())
    store.put("recipe.json", json.dumps(recipe).encode())
    for nth in range(samples):
        png = io.BytesIO()
        PIL.Image.fromarray(np.concatenate([RED, GREEN - np.uint8(nth), BLUE], axis=1)).save(png, "PNG")
        store.put(f"samples/{100 * (nth + 1):012d}.png", png.getvalue())
    return store.url


# ---- curves


def curves(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The drawn lines by label."""
    figure = Figure()
    for panel, axes in zip(PANELS, figure.subplots(1, len(PANELS)), strict=True):
        draw_panel(axes, panel, runs)
    return {line.get_label(): line for axes in figure.axes for line in axes.lines}


def test_curves_have_a_point_wherever_their_key_is_reported() -> None:
    drawn = curves({"run": lines(7)})
    terms = {"content", "pixel", "frequency", "adversarial", "penalty", "wasserstein"}
    assert set(drawn) == terms | {"restored", "blurred input", "all ranks"}
    np.testing.assert_array_equal(drawn["restored"].get_xydata(), [(48, 23), (96, 21)])
    assert drawn["content"].get_xdata().tolist() == [16 * nth for nth in range(1, 8)]
    assert drawn["penalty"].get_xdata()[0] == 32  # null is left out, not drawn as 0
    assert set(drawn["all ranks"].get_ydata()) == {8.0}


def test_curves_of_a_panel_differ_in_style_and_colour() -> None:
    drawn = curves({"run": lines(40)})
    assert drawn["blurred input"].get_linestyle() == "--"
    for panel in PANELS:
        shown = [drawn[label] for label in panel.curves.values()]
        assert len({line.get_linestyle() for line in shown}) == len({line.get_color() for line in shown}) == len(shown)


def test_with_several_runs_colour_means_run_and_style_means_term() -> None:
    drawn = curves({"a": lines(5), "b": lines(9)})
    assert drawn["a: content"].get_color() == drawn["a: restored"].get_color() != drawn["b: content"].get_color()
    assert drawn["a: penalty"].get_linestyle() == drawn["b: penalty"].get_linestyle()
    assert drawn["a: penalty"].get_linestyle() != drawn["a: wasserstein"].get_linestyle()


def test_axes_are_labelled_with_units() -> None:
    figure = Figure()
    draw_panel(figure.subplots(), PANELS[2], {"run": lines(3)})
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("images seen", "PSNR in dB")


def test_long_curves_are_averaged_and_keep_their_ends() -> None:
    points = np.stack([np.arange(10_001.0), np.full(10_001, 3.0)], axis=1)
    thin = thinned(points)
    assert len(thin) == 1000
    np.testing.assert_array_equal(thin[[0, -1]], points[[0, -1]])
    assert (thin[:, 1] == 3.0).all()
    np.testing.assert_allclose(thin[1:-1, 0].mean(), points[1:-1, 0].mean(), rtol=0.01)
    np.testing.assert_array_equal(thinned(points[:1000]), points[:1000])


def test_png_shows_samples_from_left_to_right_with_details_below() -> None:
    png = report_png({"a run": lines(4)}, {"a run": STRIP}, "a run")
    pixels = np.array(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    for nth, (_, picture) in enumerate(STRIP):
        column = pixels[:, width * (2 * nth + 1) // 6]
        assert (column[int(0.97 * height)] == picture[0, 0]).all()  # the detail, near the lower edge
        shown = (column == picture[0, 0]).all(axis=1).mean()
        assert shown > 0.3


def test_detail_is_where_the_sharp_image_has_most_contrast() -> None:
    sharp = np.full((80, 120, 3), 100, np.uint8)
    sharp[20:40:2, 60:80] = 255
    assert detail_of(sharp) == (20, 60, 20)


def test_names_with_dollar_signs_are_not_parsed_as_math() -> None:
    runs = {r"a$\frac$b": lines(2), "c$x$": lines(2)}
    assert report_png(runs, dict.fromkeys(runs, STRIP), " and ".join(runs))
    assert "a$\\frac$b" in Elements(page(dict.fromkeys(runs, run_data()))).words


def test_run_with_one_report_is_drawn() -> None:
    png = report_png({"a": lines(1), "b": lines(1)}, {"a": [], "b": []}, "runs")
    assert PIL.Image.open(io.BytesIO(png)).width > 1000


# ---- the page


class Elements(HTMLParser):
    """Start tags with their attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())


def run_data(count: int = 7, **recipe: Any) -> RunData:
    return RunData(metrics=lines(count), recipe=recipe, samples={100: STRIP, 200: STRIP})


def test_page_is_self_contained_and_has_no_scripts() -> None:
    found = Elements(page({"a": run_data(seed=1), "b": run_data(seed=2)}))
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:image/", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")]
    assert sum(tag == "svg" for tag, _ in found.tags) == len(PANELS)
    assert "@import" not in (text := page({"a": run_data()}))
    assert "url(http" not in text


def test_names_and_settings_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    found = Elements(page({evil: run_data(**{evil: evil}), "b": run_data()}))
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.words.count(evil) >= 3, "in the table of results, as a setting and as its value"


def test_results_match_the_metrics() -> None:
    assert results(lines(9)) == {
        "images seen": "144",
        "PSNR, newest": "24.00 dB",
        "PSNR, best": "24.00 dB at 144 images",
        "PSNR, blurred input": "21.00 dB",
        "gain": "+3.00 dB",
        "SSIM": "0.7500 (0.5000 blurred)",
        "images/s, median": "8.0",
        "restarts": "2",
        "updates lost": "1,500",
        "non-finite updates": "1",
    }
    assert results(lines(7))["PSNR, best"] == "23.00 dB at 48 images"
    words = Elements(page({"a": run_data(9)})).words
    assert {"+3.00 dB", "1,500", "144"} <= set(words)


def test_counters_are_summed_over_restarts() -> None:
    found = results([{"images_seen": 16 * nth, "bad_samples": bad} for nth, bad in enumerate((1, 4, 0, 1), 1)])
    assert found["bad samples"] == "5"


def test_non_finite_values_are_left_out_of_the_results() -> None:
    line = {"images_seen": 16, "validation_psnr": 20.0, "validation_blurred_psnr": 19.0, "validation_ssim": None}
    found = results([line, line | {"validation_psnr": None, "images_seen": 32}])
    assert found["PSNR, newest"] == "20.00 dB"
    assert "SSIM" not in found


def test_samples_of_another_size_than_the_newest_are_left_out(tmp_path: Path) -> None:
    url = write_run(tmp_path / "run", {}, samples=2)
    png = io.BytesIO()
    PIL.Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(png, "PNG")
    open_store(url).put("samples/000000000050.png", png.getvalue())
    assert list(read(url).samples) == [100, 200]


def test_results_without_validation_or_throughput() -> None:
    assert results([{"images_seen": 16, "images_per_second": None}]) == {"images seen": "16", "non-finite updates": "0"}


def test_several_runs_show_only_differing_settings() -> None:
    recipes = {"a": {"seed": 1, "loss.objective": "x"}, "b": {"seed": 1, "loss.objective": "y", "new": 3}}
    assert differences(recipes) == {"loss.objective": {"a": "x", "b": "y"}, "new": {"a": "", "b": "3"}}
    assert differences({"a": recipes["a"]}) == {"seed": {"a": "1"}, "loss.objective": {"a": "x"}}
    words = Elements(page({"a": run_data(seed=1, crop=2), "b": run_data(seed=3, crop=2)})).words
    assert "seed" in words
    assert "crop" not in words


def test_samples_from_start_to_end_of_the_run_are_shown() -> None:
    found = Elements(page({"a": run_data()}))
    sources = [attributes["src"] for tag, attributes in found.tags if tag == "img"]
    shown = [PIL.Image.open(io.BytesIO(base64.b64decode(str(src).partition(",")[2]))) for src in sources]
    colours = [np.array(image).reshape(-1, 3).mean(axis=0).argmax() for image in shown]
    assert colours == [0, 0, 1, 1, 1, 1, 2, 2], "blurred, twice restored, sharp, each with its detail"
    assert "restored after 200 images" in found.words


# ---- the command


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    report.main()


def test_report_of_one_run_is_written_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write_run(tmp_path / "run-1", {"seed": 5, "loss": {"objective": "wgan-gp"}}, samples=5)
    run_command(monkeypatch, url)
    words = Elements((tmp_path / "run-1/report.html").read_text()).words
    assert {"run-1", "loss.objective", "wgan-gp"} <= set(words)
    assert PIL.Image.open(tmp_path / "run-1/report.png").height > 900


def test_first_middle_and_newest_samples_are_read(tmp_path: Path) -> None:
    found = read(write_run(tmp_path / "run", {}, samples=5))
    assert list(found.samples) == [100, 300, 500]
    assert [label for label, _ in found.newest] == ["blurred", "restored", "sharp"]
    np.testing.assert_array_equal(found.newest[1][1], GREEN - np.uint8(4))


def test_comparison_of_several_runs_is_written_to_out(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = write_run(tmp_path / "x/run", {"seed": 1}), write_run(join(bucket, "y/run"), {"seed": 2}, samples=1)
    run_command(monkeypatch, here, there, "--out", join(bucket, "both"))
    out = open_store(join(bucket, "both"))
    words = Elements(out.get("report.html").decode()).words
    assert {"x/run", "y/run", "seed", "1", "2"} <= set(words), "equal last parts get longer names"
    assert PIL.Image.open(io.BytesIO(out.get("report.png"))).height > 900


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "python -m deblur.report runs/demo"),
        (("gone",), "gone/metrics.jsonl"),
        (("run", "run"), "run run"),
    ],
)
def test_invalid_runs_fail_with_a_one_line_error(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run(tmp_path / "run", {})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_command(monkeypatch, *arguments)
    assert said in capsys.readouterr().err


def test_damaged_recipe_is_named_in_the_error(tmp_path: Path) -> None:
    open_store(write_run(tmp_path / "run", {})).put("recipe.json", b"{")
    with pytest.raises(InputError, match=r"recipe\.json: "):
        read(str(tmp_path / "run"))


@pytest.mark.parametrize("content", [b'{"im', b""])
def test_damaged_metrics_are_named_in_the_error(content: bytes, tmp_path: Path) -> None:
    open_store(tmp_path).put("metrics.jsonl", content)
    with pytest.raises(InputError, match=r"metrics\.jsonl: "):
        read(str(tmp_path))
