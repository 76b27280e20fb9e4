"""Plot runs' metrics over images seen, and sample images with an enlarged detail."""

import io
import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

Metrics = Sequence[Mapping[str, Any]]  # lines of metrics.jsonl; keys may be missing, non-finite values are None
Strip = Sequence[tuple[str, np.ndarray]]  # (label, uint8 RGB [H, W, 3]), all the same size, the sharp image last

# Okabe and Ito's colour-blind-safe palette; line styles distinguish curves in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_STYLES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_WIDTH_INCHES, _CURVES_INCHES, _DPI = 13.0, 6.4, 100
_FEW = 20  # curves of at most this many points get markers
_MANY = 1000  # maximum points of a curve; longer ones are averaged
_DETAIL_SHARE = 0.25  # side of the detail as a share of the shorter side


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `curves` are keys of metrics with their labels."""

    title: str
    unit: str
    curves: Mapping[str, str]
    logarithmic: bool = False
    from_zero: bool = False


PANELS = (
    Panel(
        "generator losses",
        "loss, unweighted",
        {"content": "content", "pixel": "pixel", "frequency": "frequency"},
        logarithmic=True,
    ),
    Panel(
        "critic and generator",
        "score, unweighted",
        {"wasserstein": "wasserstein", "adversarial": "adversarial", "penalty": "penalty"},
    ),
    Panel(
        "validation",
        "PSNR in dB",
        {"validation_psnr": "restored", "validation_blurred_psnr": "blurred input"},
    ),
    Panel("throughput", "images per second", {"images_per_second": "all ranks"}, from_zero=True),
)


def report_png(runs: Mapping[str, Metrics], strips: Mapping[str, Strip], title: str) -> bytes:
    """A PNG of all panels with the curves of each run, then each run's samples with one detail enlarged.

    A strip may be empty.
    """
    shown = {name: strip for name, strip in strips.items() if strip}
    inches = [_CURVES_INCHES, *(_strip_inches(strip) for strip in shown.values())]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(inches) + 0.8), dpi=_DPI, layout="constrained")
    figure.suptitle(plain(title))
    rows = figure.subfigures(len(inches), squeeze=False, height_ratios=inches)[:, 0]
    for panel, axes in zip(PANELS, rows[0].subplots(2, 2).flat, strict=True):
        draw_panel(axes, panel, runs)
    for row, (name, strip) in zip(rows[1:], shown.items(), strict=True):
        if len(shown) > 1:
            row.suptitle(plain(name))
        _draw_strip(row.subplots(2, len(strip), squeeze=False, height_ratios=_heights(strip)), strip)
    return figure_png(figure)


def panel_svg(panel: Panel, runs: Mapping[str, Metrics]) -> str:
    """One panel as an SVG element, with selectable text."""
    with svg_settings(panel.title):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        draw_panel(figure.subplots(), panel, runs)
        return figure_svg(figure)


def svg_settings(title: str) -> AbstractContextManager[None]:
    """Settings for reproducible SVG with selectable text."""
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title})


def figure_png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def figure_svg(figure: Figure) -> str:
    """A figure as an SVG element."""
    svg = io.StringIO()
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    text = svg.getvalue()
    return text[text.index("<svg") :]


def draw_panel(axes: Axes, panel: Panel, runs: Mapping[str, Metrics]) -> None:
    """Draws a panel. Curves of one run differ in colour and style; with several runs, colour means run, style curve."""
    for (nth_run, (name, metrics)), (nth, (key, label)) in itertools.product(
        enumerate(runs.items()), enumerate(panel.curves.items())
    ):
        colour = COLOURS[(nth if len(runs) == 1 else nth_run) % len(COLOURS)]
        _curve(axes, metrics, key, label if len(runs) == 1 else f"{plain(name)}: {label}", colour, _STYLES[nth])
    axes.set(
        title=panel.title, ylabel=panel.unit, xlabel="images seen", yscale="log" if panel.logarithmic else "linear"
    )
    axes.set_xlim(left=0)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    if not axes.lines:
        axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center")
    elif len(runs) == 1:
        axes.legend()
    else:
        axes.legend(handles=_legend_handles(list(runs), list(panel.curves.values())), fontsize="small")


def plain(name: str) -> str:
    """Escapes a name so that matplotlib does not parse it as math."""
    return name.replace("$", r"\$")


def _legend_handles(names: list[str], labels: list[str]) -> list[Line2D]:
    """One legend entry per run and, if a panel has several curves, one per curve."""
    handles = [Line2D([], [], color=COLOURS[nth % len(COLOURS)], label=plain(name)) for nth, name in enumerate(names)]
    if len(labels) > 1:
        handles += [
            Line2D([], [], color="black", linestyle=_STYLES[nth], label=label) for nth, label in enumerate(labels)
        ]
    return handles


def _curve(axes: Axes, metrics: Metrics, key: str, label: str, colour: str, style: str) -> None:
    """Draws one curve from the lines that have the key; a term that is 0 throughout is not in use."""
    points = [(line["images_seen"], line[key]) for line in metrics if line.get(key) is not None]
    if any(value for _, value in points):
        x, y = thinned(np.array(points, dtype=float)).T
        marker = "o" if len(points) <= _FEW else ""  # a single point is invisible without a marker
        axes.plot(x, y, label=label, color=colour, linestyle=style, marker=marker, markersize=4)


def thinned(points: np.ndarray) -> np.ndarray:
    """Points [N, 2] reduced to at most `_MANY`: between the first and the last, averages of chunks of equal length.

    Keeps the page small for long runs; at that density single reports are indistinguishable.
    """
    if len(points) <= _MANY:
        return points
    chunks = np.array_split(points[1:-1], _MANY - 2)
    return np.vstack([points[0], *(chunk.mean(axis=0) for chunk in chunks), points[-1]])


def _heights(strip: Strip) -> list[float]:
    """Heights in inches of the images and of the details below them."""
    height, width = strip[0][1].shape[:2]
    column_inches = _WIDTH_INCHES / len(strip)
    return [column_inches * height / width, column_inches]


def _strip_inches(strip: Strip) -> float:
    return sum(_heights(strip))


def _draw_strip(axes: np.ndarray, strip: Strip) -> None:
    """Draws images above, details below."""
    top, left, side = detail_of(strip[-1][1])
    for (label, picture), whole, detail in zip(strip, *axes, strict=True):
        whole.imshow(picture)
        whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="white", linewidth=2.5))
        whole.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="black", linewidth=1))
        whole.set_title(label)
        detail.imshow(picture[top : top + side, left : left + side], interpolation="nearest")
        for panel in (whole, detail):
            panel.set_xticks([])
            panel.set_yticks([])


def detail_of(sharp: np.ndarray) -> tuple[int, int, int]:
    """Top, left and side in pixels of the square with most contrast in an image [H, W, 3], where blur shows."""
    height, width = sharp.shape[:2]
    side = max(1, round(min(height, width) * _DETAIL_SHARE))
    grey = sharp.astype(np.float32).mean(axis=2)
    edges = np.hypot(*np.gradient(grey)) if min(height, width) > 1 else grey
    corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    top, left = max(corners, key=lambda corner: edges[corner[0] :, corner[1] :][:side, :side].mean())
    return top, left, side
