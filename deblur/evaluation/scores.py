"""Scores of pictures by all metrics, as text tables and as JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from deblur.evaluation.detection import Matches

_SIDES = ("blurred", "restored")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One picture's scores. PSNR is in dB, infinite for equal pictures. None: not measured."""

    key: str
    blurred_psnr: float
    restored_psnr: float
    blurred_ssim: float
    restored_ssim: float
    blurred_lpips: float | None = None
    restored_lpips: float | None = None
    blurred_matches: Matches | None = None
    restored_matches: Matches | None = None


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A metric with one value per picture."""

    name: str
    unit: str
    field: str
    better: str
    form: str

    def of(self, score: Score) -> tuple[float, float]:
        """The values of the blurred and of the restored picture."""
        return getattr(score, f"blurred_{self.field}"), getattr(score, f"restored_{self.field}")


_METRICS = (
    _Metric(name="PSNR", unit=" dB", field="psnr", better="higher", form=".2f"),
    _Metric(name="SSIM", unit="", field="ssim", better="higher", form=".4f"),
    _Metric(name="LPIPS", unit="", field="lpips", better="lower", form=".4f"),
)
_RATES = ("precision", "recall", "f1")


def mean(scores: Sequence[Score]) -> Score:
    """The mean over pictures, and the sums of their matches, under the key "mean"."""
    columns = {field.name: [getattr(score, field.name) for score in scores] for field in fields(Score)}
    return Score(**columns | {name: _aggregate(values) for name, values in columns.items()} | {"key": "mean"})


def _aggregate(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Matches):
        return sum(values, Matches())
    return fmean(values) if isinstance(values[0], float | int) else None


def table(scores: Sequence[Score]) -> str:
    """One line per picture."""
    metrics = _measured(scores)
    rows = [["key", *(f"{side} {metric.name}" for metric in metrics for side in _SIDES)]]
    for score in scores:
        rows.append([score.key, *(_number(value, metric.form) for metric in metrics for value in metric.of(score))])
    return _aligned(rows)


def summary(scores: Sequence[Score]) -> str:
    """One line per metric: the mean over pictures, and its change by the generator."""
    total = mean(scores)
    rows = [["metric", "better", *_SIDES, "change"]]
    for metric in _measured(scores):
        rows.append([metric.name + metric.unit, metric.better, *_compared(*metric.of(total), metric.form)])
    before, after = total.blurred_matches, total.restored_matches
    if before is None or after is None:
        return _aligned(rows)
    for rate in _RATES:
        name = "F1" if rate == "f1" else rate
        rows.append([f"detection {name}", "higher", *_compared(getattr(before, rate), getattr(after, rate), ".4f")])
    return f"{_aligned(rows)}\n\n{_counts(before, after)}"


def as_json(scores: Sequence[Score], model: str, definition: str) -> str:
    """Both tables as JSON; nan and infinity become null."""
    total = mean(scores)
    result: dict[str, Any] = {"model": model, "definition": definition, "mean": _row(total)}
    detection = {side: result["mean"].pop(f"{side}_matches", None) for side in _SIDES}
    if total.blurred_matches is not None:
        result["detection"] = detection
    result["pictures"] = [_row(score) for score in scores]
    finite = json.loads(json.dumps(result), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2)


def _measured(scores: Sequence[Score]) -> list[_Metric]:
    return [metric for metric in _METRICS if None not in metric.of(scores[0])]


def _compared(before: float, after: float, form: str) -> list[str]:
    return [_number(before, form), _number(after, form), _number(after - before, f"+{form}")]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _counts(before: Matches, after: Matches) -> str:
    found = ", ".join(
        f"{side} {matches.true_positives} of these and {matches.false_positives} others"
        for side, matches in zip(_SIDES, (before, after), strict=True)
    )
    return f"boxes: sharp {before.true_positives + before.misses}; {found}"


def _row(score: Score) -> dict[str, Any]:
    """A score without missing values, with rates added to the counts."""
    row = {name: value for name, value in asdict(score).items() if value is not None}
    for name in row:
        if name.endswith("_matches"):
            row[name] |= {rate: getattr(getattr(score, name), rate) for rate in _RATES}
    return row


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Aligns the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(" | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
