"""Draws a run: python -m deblur.report RUN [--out FILE.png]

Losses, validation PSNR beside the blurred pictures' own, and the newest sample with an enlarged detail, in one picture.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from cluster.errors import InputError, NotFound, one_line_errors
from cluster.storage import Store, join, open_store
from deblur.data import pictures

Metrics = Sequence[dict[str, Any]]
Strip = Sequence[tuple[str, np.ndarray]]  # (label, uint8 RGB [H, W, 3]), all of one size

# Okabe and Ito's colours, told apart with any colour vision; line styles tell them apart in grey.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_GENERATOR_TERMS = (("content", _BLUE, "-"), ("pixel", _ORANGE, "--"))
_CRITIC_TERMS = (("wasserstein", _BLUE, "-"), ("adversarial", _ORANGE, "--"), ("penalty", _GREEN, ":"))
_WIDTH_INCHES, _CURVES_INCHES, _DPI = 13.0, 3.4, 110
_FEW = 20  # points of a curve that are drawn as such
_DETAIL_SHARE = 0.25  # side of the detail as a share of the shorter side


@dataclass(frozen=True, kw_only=True)
class Settings:
    run: tyro.conf.Positional[str]
    """A run: folder or s3:// URL."""
    out: Path | None = None
    """PNG to write; else report.png in the run."""


def draw_report(metrics: Metrics, strip: Strip, out: Path, title: str) -> None:
    """Writes one PNG: curves over images seen, the pictures of the strip, and the same detail of each, enlarged.

    metrics  lines of metrics.jsonl; a line may lack keys, or hold null for a number that was not finite
    strip    (label, uint8 RGB [H, W, 3]) of one size, the sharp picture last; may be empty
    """
    open_store(out.parent).put(out.name, report_png(metrics, strip, title))


def report_png(metrics: Metrics, strip: Strip, title: str) -> bytes:
    """What `draw_report` writes."""
    shape = strip[0][1].shape if strip else (0, 1)
    column_inches = _WIDTH_INCHES / max(1, len(strip))
    heights = [_CURVES_INCHES, column_inches * shape[0] / shape[1], column_inches] if strip else [_CURVES_INCHES]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 0.8), dpi=_DPI, layout="constrained")
    figure.suptitle(title)
    rows = figure.subfigures(2 if strip else 1, height_ratios=[heights[0], sum(heights[1:])][: 2 if strip else 1])
    _draw_curves(rows[0] if strip else rows, metrics)
    if strip:
        _draw_strip(rows[1].subplots(2, len(strip), squeeze=False, height_ratios=heights[1:]), strip)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def _draw_curves(row: Any, metrics: Metrics) -> None:
    generator, critic, quality = row.subplots(1, 3)
    for name, colour, style in _GENERATOR_TERMS:
        _curve(generator, metrics, name, name, colour, style)
    generator.set(title="what the generator lowers", ylabel="loss, unweighted", yscale="log")
    for name, colour, style in _CRITIC_TERMS:
        _curve(critic, metrics, name, name, colour, style)
    critic.set(title="critic and generator", ylabel="score, unweighted")
    _curve(quality, metrics, "validation_psnr", "restored", _BLUE, "-")
    _curve(quality, metrics, "validation_blurred_psnr", "blurred, as it came", _GREY, "--")
    quality.set(title="validation", ylabel="PSNR in dB")
    for axes in (generator, critic, quality):
        axes.set_xlabel("images seen")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        else:
            axes.text(0.5, 0.5, "nothing reported yet", transform=axes.transAxes, ha="center")


def _curve(axes: Axes, metrics: Metrics, key: str, label: str, colour: str, style: str) -> None:
    """One curve of the lines that have the key."""
    points = [(line["images_seen"], line[key]) for line in metrics if line.get(key) is not None]
    if points:
        marker = "o" if len(points) <= _FEW else ""  # a line of one point would not be seen
        axes.plot(*zip(*points, strict=True), label=label, color=colour, linestyle=style, marker=marker, markersize=4)


def _draw_strip(axes: np.ndarray, strip: Strip) -> None:
    """Pictures above, details below."""
    top, left, side = _detail(strip[-1][1])
    for (label, picture), whole, detail in zip(strip, *axes, strict=True):
        whole.imshow(picture)
        whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="white", linewidth=2.5))
        whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="black", linewidth=1))
        whole.set_title(label)
        detail.imshow(picture[top : top + side, left : left + side], interpolation="nearest")
        for panel in (whole, detail):
            panel.set_xticks([])
            panel.set_yticks([])


def _detail(sharp: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side of the square with most contrast in a picture [H, W, 3]: where blur shows."""
    height, width = sharp.shape[:2]
    side = max(1, round(min(height, width) * _DETAIL_SHARE))
    grey = sharp.astype(np.float32).mean(axis=2)
    edges = np.hypot(*np.gradient(grey)) if min(height, width) > 1 else grey
    corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    top, left = max(corners, key=lambda corner: edges[corner[0] :, corner[1] :][:side, :side].mean())
    return top, left, side


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises InputError naming the place."""
    place = join(store.url, "metrics.jsonl")
    try:
        return [json.loads(line) for line in store.get("metrics.jsonl").decode().splitlines()]
    except NotFound as error:
        raise InputError(f"{place}: not there; name a run that has reported at least once") from error
    except ValueError as error:
        raise InputError(f"{place}: not one JSON object per line ({error})") from error


def newest_sample(store: Store) -> Strip:
    """The newest of a run's samples, cut into its three pictures; empty where there is none."""
    keys = [key for key in store.list("samples/") if Path(key).stem.isdecimal() and key.endswith(".png")]
    if not keys:
        return []
    newest = max(keys, key=lambda key: int(Path(key).stem))
    picture = pictures.decode(store.get(newest), join(store.url, newest))
    return list(zip(("blurred", "restored", "sharp"), np.split(picture, 3, axis=1), strict=True))


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.report")
        store = open_store(settings.run)
        title = store.url.rpartition("/")[2]
        png = report_png(read_metrics(store), newest_sample(store), title)
        target = open_store(settings.out.parent) if settings.out else store
        name = settings.out.name if settings.out else "report.png"
        target.put(name, png)
        print(join(target.url, name))


if __name__ == "__main__":
    main()
