"""The report of a search: learning curves, scores against speed and each parameter, and parameter importance.

report.html, a single self-contained file, and report.png.
"""

import io
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from optuna.distributions import CategoricalDistribution, IntDistribution

from deblur.plots.curves import COLOURS, figure_svg, plain, svg_settings
from deblur.plots.html import render
from deblur.search.record import Metric, Search, Trial
from deblur.search.space import Space, describe
from deblur.search.study import MIN_TRIALS, importances
from deblur.search.table import counts, rows

_AXIS: dict[Metric, str] = {"psnr": "validation PSNR in dB", "ssim": "validation SSIM"}
_PANEL_INCHES = (5.2, 3.6)
_OUTLIER = 4.0  # this many times as far below the median as the best score is above it

Panel = tuple[str, Callable[[Axes], None]]


def write(search: Search, space: Space) -> None:
    """Writes both files into the folder of the search."""
    panels, title, best = list_panels(search, space), f"{search.name}: {counts(search.trials)}", search.best()
    page = render(
        "deblur.search",
        "search.html.j2",
        title=title,
        best=best and search.name_of(best),
        rows=rows(search),
        space={name: describe(distribution) for name, distribution in space.items()},
        panels=[(panel[0], _svg(panel)) for panel in panels],
        min_trials=MIN_TRIALS,
    )
    search.store.put("report.html", page.encode())
    figure, picture = _figure(panels, columns=3), io.BytesIO()
    figure.suptitle(plain(title))
    FigureCanvasAgg(figure).print_png(picture)
    search.store.put("report.png", picture.getvalue())


def list_panels(search: Search, space: Space) -> list[Panel]:
    """The title of each panel and the function that draws it."""
    panels: list[Panel] = [("learning curves", partial(_curves, search=search))]
    panels += [("quality and speed", partial(_speed, search=search))]
    panels += [(f"against {name}", partial(_parameter, search=search, space=space, name=name)) for name in space]
    if shares := importances(space, search.trials, search.metric):
        panels.append(("parameter importance", partial(_importance, shares=shares)))
    return panels


def _svg(panel: Panel) -> Markup:
    with svg_settings(panel[0]):
        return Markup(figure_svg(_figure([panel], columns=1)))  # matplotlib escapes names


def _figure(panels: list[Panel], columns: int) -> Figure:
    height = math.ceil(len(panels) / columns)
    size = (columns * _PANEL_INCHES[0], height * _PANEL_INCHES[1])
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    for place, (title, draw) in enumerate(panels, start=1):
        axes = figure.add_subplot(height, columns, place)
        draw(axes)
        axes.set_title(plain(title))
    return figure


def _curves(axes: Axes, search: Search) -> None:
    for trial in reversed(search.ranked()):
        points = [(point["images_seen"], point[f"validation_{search.metric}"]) for point in trial.curve]
        axes.plot(*zip(*points, strict=True), **_style(search, trial), markevery=[-1], markersize=5)
    if blurred := _blurred(search):
        axes.axhline(blurred, color="black", linestyle=":", linewidth=1, label="blurred input")
    axes.set(xlabel="images seen", ylabel=_AXIS[search.metric], ylim=visible_range(search))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    if by_label := dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)):
        axes.legend(by_label.values(), by_label.keys(), fontsize=8)


def _speed(axes: Axes, search: Search) -> None:
    _scatter(axes, search, lambda trial: trial.images_per_second)
    axes.set(xlabel="images per second")
    axes.set_xlim(left=0)


def _parameter(axes: Axes, search: Search, space: Space, name: str) -> None:
    distribution = space[name]
    if isinstance(distribution, CategoricalDistribution):  # all choices in their order, also those that no trial has
        axes.plot(list(map(str, distribution.choices)), [math.nan] * len(distribution.choices))
        axes.margins(x=0.15)
        _scatter(axes, search, lambda trial: str(trial.values[name]))
    else:
        _scatter(axes, search, lambda trial: trial.values[name])
        axes.set_xscale("log" if distribution.log else "linear")
        axes.plot([distribution.low, distribution.high], [math.nan] * 2)
    axes.set(xlabel=name)
    if isinstance(distribution, IntDistribution):
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _scatter(axes: Axes, search: Search, x_of: Callable[[Trial], Any]) -> None:
    """A numbered marker for the newest score of each trial; outliers are drawn at the lower edge."""
    lowest, highest = visible_range(search)
    for score, trial in search.scored():
        x = x_of(trial)
        style = _style(search, trial) | {"linestyle": ""} | ({"marker": "v"} if score < lowest else {})
        axes.plot([x], [max(score, lowest)], **style, markersize=7, clip_on=False)
        text = f"{trial.number}: {score:.3g}" if score < lowest else str(trial.number)
        axes.annotate(text, (x, max(score, lowest)), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set(ylabel=_AXIS[search.metric], ylim=(lowest, highest))
    axes.grid(alpha=0.3)


def visible_range(search: Search) -> tuple[float, float]:
    """The range of the axis of scores, without outliers, which would press all others together."""
    scores = [score for score, _ in search.scored()]
    if not scores:
        return (0.0, 1.0)
    limit = statistics.median(scores) - _OUTLIER * (max(scores) - statistics.median(scores))
    ends = [*(score for score in scores if score >= limit), *filter(None, [_blurred(search)])]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _blurred(search: Search) -> float | None:
    """PSNR of the blurred input, if PSNR is what is drawn."""
    values = [trial.curve[0].get("validation_blurred_psnr") for trial in search.trials if trial.curve]
    return values[0] if values and search.metric == "psnr" else None


def _importance(axes: Axes, shares: dict[str, float]) -> None:
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color=COLOURS[0])
    axes.set(xlabel="relative importance (PED-ANOVA)", xlim=(0, 1))
    axes.grid(axis="x", alpha=0.3)


def _style(search: Search, trial: Trial) -> dict[str, Any]:
    if trial is search.best():
        return {"label": "best", "color": COLOURS[1], "marker": "D", "linewidth": 2.4}
    if trial.state == "finished":
        return {"label": "finished", "color": COLOURS[0], "marker": "o", "linewidth": 1.2}
    style = {"label": "not finished", "color": "#8a8a8a", "marker": "o", "markerfacecolor": "white"}
    return style | {"linewidth": 1.0, "linestyle": "--"}
