"""The reports of a search: a table of its trials for the terminal, and a page and a picture in its folder.

report.html, a single self-contained file, and report.png show learning curves, scores against speed and against each
parameter, and parameter importance.
"""

import math
import statistics
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from deblur.plots.curves import COLOURS, figure_png, figure_svg, plain, svg_settings
from deblur.plots.html import render
from deblur.search.record import Search, Trial
from deblur.search.space import Distribution, describe, extremes
from deblur.search.study import MIN_TRIALS, importances

_AXIS = {"psnr": "validation PSNR in dB", "ssim": "validation SSIM"}
_COLUMNS, _PANEL_INCHES = 3, (4.3, 3.0)
_OUTLIER = 4.0  # not shown: this many times as far below the median as the best score is above it


def counts(search: Search) -> str:
    """How many trials are in each state: "3 finished, 1 stopped, 2 running"."""
    states = [trial.state for trial in search.trials]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none yet"


def table(search: Search) -> str:
    """All trials, best first, then those without a score, one line each."""
    ranked = search.ranked()
    names = sorted({name for trial in search.trials for name in trial.values})
    rows = [["trial", "state", "images", "PSNR", "SSIM", "images/s", *names, ""]]
    for trial in [*ranked, *(trial for trial in search.trials if trial not in ranked)]:
        numbers = [(trial.score("psnr"), ".3f"), (trial.score("ssim"), ".4f"), (trial.images_per_second, ".1f")]
        row = [search.name_of(trial), trial.state, f"{trial.images_seen:,}"]
        row += ["-" if number is None else format(number, form) for number, form in numbers]
        values = [trial.values.get(name, "") for name in names]
        row += [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        rows.append([*row, trial.reason])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0  # reasons are aligned on the left
    return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)


def write(search: Search) -> None:
    """Writes report.html and report.png into the folder of the search."""
    title, figure = f"{search.name}: {counts(search)}", draw(search)
    figure.suptitle(plain(title))
    search.store.put("report.png", figure_png(figure))  # first, because SVG changes the resolution
    with svg_settings(search.name):
        svg = Markup(figure_svg(figure))  # noqa: S704  # matplotlib escapes names
    values = {"title": title, "search": search, "figure": svg, "table": table(search), "describe": describe}
    page = render("deblur.search", "search.html.j2", **values, min_trials=MIN_TRIALS)
    search.store.put("report.html", page.encode())


def draw(search: Search) -> Figure:
    """A panel each for learning curves, speed and every parameter; one for importance if there are enough trials."""
    shares = importances(search.space, search.trials, search.settings.metric)
    rows = math.ceil((2 + len(search.space) + bool(shares)) / _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]), dpi=100, layout="constrained")
    panels = (figure.add_subplot(rows, _COLUMNS, nth) for nth in range(1, rows * _COLUMNS + 1))
    _draw_curves(next(panels), search)
    for name, distribution in {"images per second": FloatDistribution(0, 0), **search.space}.items():
        _draw_scores(next(panels), search, name, distribution)
    if names := sorted(shares, key=lambda name: shares[name]):
        axes = next(panels)
        axes.barh(names, [shares[name] for name in names], color=COLOURS[0])
        axes.set(xlabel="relative importance (PED-ANOVA)", xlim=(0, 1))
    return figure


def _draw_curves(axes: Axes, search: Search) -> None:
    for trial in reversed(search.ranked()):
        images, scores = ([point[key] for point in trial.curve] for key in ("images_seen", search.score_key))
        axes.plot(images, scores, **_style(search, trial), markevery=[-1])
    if search.settings.metric == "psnr" and (trials := search.ranked()):
        axes.axhline(trials[0].curve[0]["validation_blurred_psnr"], color="black", ls=":", label="blurred input")
    by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each once
    axes.legend(by_label.values(), by_label.keys(), fontsize=8)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    _set_score_axis(axes, search, "images seen")


def _draw_scores(axes: Axes, search: Search, name: str, distribution: Distribution) -> None:
    """A numbered marker for the newest score of each trial, against a parameter or, by default, its speed."""
    shown = str if isinstance(distribution, CategoricalDistribution) else float
    ends = [shown(value) for value in extremes(distribution)]
    # Invisible, so that the axis has all choices, or the whole range.
    axes.plot(ends, [0.5] * len(ends), transform=axes.get_xaxis_transform(), linestyle="")
    for trial in reversed(search.ranked()):
        x, y = shown(trial.values.get(name, trial.images_per_second or 0)), trial.curve[-1][search.score_key]
        axes.plot([x], [y], **_style(search, trial) | {"linestyle": ""})
        axes.annotate(str(trial.number), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7)
    if getattr(distribution, "log", False):
        axes.set_xscale("log")
    if isinstance(distribution, IntDistribution):
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _set_score_axis(axes, search, name)


def _set_score_axis(axes: Axes, search: Search, xlabel: str) -> None:
    """Labels the axes, and leaves out scores so low that the axis would press all others together."""
    axes.set(xlabel=xlabel, ylabel=_AXIS[search.settings.metric])
    axes.grid(alpha=0.3)
    if scores := [trial.curve[-1][search.score_key] for trial in search.ranked()]:
        median = statistics.median(scores)
        lowest = median - _OUTLIER * (scores[0] - median)
        if scores[-1] < lowest < scores[0]:
            axes.set_ylim(lowest, scores[0] + 0.1 * (scores[0] - lowest))


def _style(search: Search, trial: Trial) -> dict[str, Any]:
    if trial is search.best():
        return {"label": "best", "color": COLOURS[1], "marker": "D", "linewidth": 2.4}
    if trial.state == "finished":
        return {"label": "finished", "color": COLOURS[0], "marker": "o"}
    return {"label": "not finished", "color": "#8a8a8a", "marker": "o", "markerfacecolor": "white", "linestyle": "--"}
