"""Draws a search: curves of its trials, what they reached against each parameter and against speed, what matters.

report.html, one file that needs no other, and report.png.
"""

import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from deblur.plots.curves import COLOURS, figure_svg, plain, svg_settings
from deblur.plots.html import render
from deblur.search.importance import ENOUGH, importances
from deblur.search.record import Metric, Search, Trial
from deblur.search.space import Choices, Range, Space
from deblur.search.table import cells, counts

_AXIS: dict[Metric, str] = {"psnr": "validation PSNR in dB", "ssim": "validation SSIM"}
_BEST, _FINISHED, _STOPPED = COLOURS[1], COLOURS[0], "#8a8a8a"
_PANEL_INCHES = (5.2, 3.6)
_COLUMNS, _DPI = 3, 100
_OUTLIER = 4.0  # times as far below the middle as the best is above it

Panel = tuple[str, Callable[[Axes], None]]


def write(search: Search, space: Space) -> None:
    """Writes both into the folder of the search."""
    search.store.put("report.html", page(search, space).encode())
    search.store.put("report.png", png(search, space))


def panels(search: Search, space: Space) -> list[Panel]:
    """What is drawn: a title and what draws it."""
    found: list[Panel] = [("trials", partial(_curves, search=search))]
    found += [("quality and speed", partial(_speed, search=search))]
    found += [
        (f"against {name}", partial(_against, search=search, name=name, range_=range_))
        for name, range_ in space.items()
    ]
    if shares := importances(space, search.trials, search.metric):
        found.append(("what matters", partial(_importance, shares=shares)))
    return found


def png(search: Search, space: Space) -> bytes:
    """All panels as one picture."""
    drawn = panels(search, space)
    rows = math.ceil(len(drawn) / _COLUMNS)
    size = (_COLUMNS * _PANEL_INCHES[0], rows * _PANEL_INCHES[1] + 0.5)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    figure.suptitle(plain(_title(search)))
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for place in axes[len(drawn) :]:
        place.set_axis_off()
    for place, (title, draw) in zip(axes, drawn, strict=False):
        draw(place)
        place.set_title(plain(title))
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def page(search: Search, space: Space) -> str:
    """The HTML page."""
    best = search.best()
    return render(
        "deblur.search",
        "search.html.j2",
        title=_title(search),
        best=best and search.name_of(best),
        rows=cells(search),
        space={name: str(range_) for name, range_ in space.items()},
        # matplotlib escapes the names in it.
        panels=[(title, Markup(_svg(title, draw))) for title, draw in panels(search, space)],
        enough=ENOUGH,
    )


def _title(search: Search) -> str:
    return f"{search.name}: {counts(search.trials)}"


def _svg(title: str, draw: Callable[[Axes], None]) -> str:
    with svg_settings(title):
        figure = Figure(figsize=_PANEL_INCHES, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(plain(title))
        return figure_svg(figure)


def _curves(axes: Axes, search: Search) -> None:
    key, best = f"validation_{search.metric}", search.best()
    for trial in [*(t for t in search.trials if t is not best), *([best] if best else [])]:
        points = [(point["images_seen"], point[key]) for point in trial.curve if key in point]
        if points:
            axes.plot(*zip(*points, strict=True), **_style(trial, best), markevery=[-1], markersize=5)
    if blurred := _blurred(search):
        axes.axhline(blurred, color="black", linestyle=":", linewidth=1)
        axes.annotate("blurred, as it came", (0, blurred), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel="images seen", ylabel=_AXIS[search.metric])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(*_shown(search))
    axes.grid(alpha=0.3)
    _legend(axes, search)


def _speed(axes: Axes, search: Search) -> None:
    _points(axes, search, [(trial, trial.images_per_second) for trial in search.ranked()])
    axes.set(xlabel="images per second")
    axes.set_xlim(left=0)


def _against(axes: Axes, search: Search, name: str, range_: Range | Choices) -> None:
    known = [(trial, trial.values[name]) for trial in search.ranked()]
    if isinstance(range_, Choices):
        known = [(trial, str(value)) for trial, value in known]
        axes.plot([str(value) for value in range_.values], [_shown(search)[1]] * len(range_.values), alpha=0)
        axes.margins(x=0.15)
    _points(axes, search, known)
    axes.set(xlabel=name)
    if isinstance(range_, Range):
        ends = [range_.low, range_.high, *(value for _, value in known)]
        if range_.logarithmic:
            axes.set(xscale="log", xlim=(min(ends) / 1.2, max(ends) * 1.2))
        else:
            margin = 0.05 * (max(ends) - min(ends))
            axes.set(xlim=(min(ends) - margin, max(ends) + margin))
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=range_.whole))


def _points(axes: Axes, search: Search, known: Sequence[tuple[Trial, Any]]) -> None:
    """One marker per trial at what it reached, with its number; those far below all others at the lower edge."""
    best, (lowest, highest) = search.best(), _shown(search)
    for trial, x in known:
        score = trial.score(search.metric)
        style, text, y = {**_style(trial, best), "linestyle": ""}, str(trial.number), score
        if score < lowest:
            style, text, y = {**style, "marker": "v"}, f"{trial.number}: {score:.3g}", lowest
        axes.plot([x], [y], **style, markersize=7, clip_on=False)
        axes.annotate(text, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set(ylabel=_AXIS[search.metric], ylim=(lowest, highest))
    axes.grid(alpha=0.3)


def _shown(search: Search) -> tuple[float, float]:
    """The part of the axis of scores in which most trials are: a hopeless one would press all others together."""
    scores = [trial.score(search.metric) for trial in search.ranked()]
    if not scores:
        return (0.0, 1.0)
    middle, blurred = statistics.median(scores), _blurred(search)
    lowest = min(score for score in scores if score >= middle - _OUTLIER * (max(scores) - middle))
    ends = [lowest, max(scores), *([blurred] if blurred else [])]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    return min(ends) - margin, max(ends) + margin


def _blurred(search: Search) -> float | None:
    """PSNR of the blurred pictures themselves, where that is what is drawn."""
    found = [trial.curve[0].get("validation_blurred_psnr") for trial in search.trials if trial.curve]
    return found[0] if found and search.metric == "psnr" else None


def _importance(axes: Axes, shares: Mapping[str, float]) -> None:
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color=_FINISHED)
    axes.set(xlabel="share of the order of trials that it explains alone", xlim=(0, 1))
    axes.grid(axis="x", alpha=0.3)


def _style(trial: Trial, best: Trial | None) -> dict[str, Any]:
    """Trials that were stopped early are grey and hollow, the best has a colour and a shape of its own."""
    if trial is best:
        return {"color": _BEST, "marker": "D", "linewidth": 2.4, "linestyle": "-"}
    if trial.state == "finished":
        return {"color": _FINISHED, "marker": "o", "linewidth": 1.2, "linestyle": "-"}
    return {"color": _STOPPED, "marker": "o", "markerfacecolor": "white", "linewidth": 1.0, "linestyle": "--"}


def _legend(axes: Axes, search: Search) -> None:
    best = search.best()
    finished = next((trial for trial in search.trials if trial.state == "finished" and trial is not best), None)
    others = next((trial for trial in search.trials if trial.state != "finished"), None)
    for label, trial in (("best", best), ("finished", finished), ("not finished", others)):
        if trial:
            axes.plot([], [], label=label, **_style(trial, best), markersize=5)
    if search.trials:
        axes.legend(fontsize=8)
