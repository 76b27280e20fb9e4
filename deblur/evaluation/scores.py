"""What pictures scored, by each judge, as tables for people and as JSON."""

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
    """One picture's scores; PSNR in dB, infinite where two pictures are equal. None: that judge was not asked."""

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
class _Measure:
    """A judge with a value for each picture."""

    name: str
    unit: str
    field: str
    better: str
    form: str

    def of(self, score: Score) -> list[float]:
        """The blurred picture's value, and the restored one's."""
        return [getattr(score, f"{side}_{self.field}") for side in _SIDES]


_MEASURES = (
    _Measure(name="PSNR", unit=" dB", field="psnr", better="higher", form=".2f"),
    _Measure(name="SSIM", unit="", field="ssim", better="higher", form=".4f"),
    _Measure(name="LPIPS", unit="", field="lpips", better="lower", form=".4f"),
)
_RATES = ("precision", "recall", "f1")


def mean(scores: Sequence[Score]) -> Score:
    """The mean of the pictures' values, and all their matches together, under the key "mean"."""
    columns = {field.name: [getattr(score, field.name) for score in scores] for field in fields(Score)}
    return Score(**columns | {name: _together(values) for name, values in columns.items()} | {"key": "mean"})


def _together(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Matches):
        return sum(values, Matches())
    return fmean(values) if isinstance(values[0], float | int) else None


def table(scores: Sequence[Score]) -> str:
    """A line for each picture."""
    measures = _asked(scores)
    rows = [["key", *(f"{side} {measure.name}" for measure in measures for side in _SIDES)]]
    for score in scores:
        rows.append([score.key, *(_number(value, it.form) for it in measures for value in it.of(score))])
    return _aligned(rows)


def summary(scores: Sequence[Score]) -> str:
    """A line for each judge: what all pictures scored, and what the generator changes."""
    total = mean(scores)
    rows = [["judge", "better", *_SIDES, "change"]]
    for measure in _asked(scores):
        rows.append([measure.name + measure.unit, measure.better, *_compared(*measure.of(total), measure.form)])
    before, after = total.blurred_matches, total.restored_matches
    if before is None or after is None:
        return _aligned(rows)
    for rate in _RATES:
        name = "F1" if rate == "f1" else rate
        rows.append([f"detection {name}", "higher", *_compared(getattr(before, rate), getattr(after, rate), ".4f")])
    return f"{_aligned(rows)}\n\n{_counts(before, after)}"


def as_json(scores: Sequence[Score], model: str, definition: str) -> str:
    """Both tables as JSON; nan and infinity become null, which JSON knows."""
    total = mean(scores)
    result: dict[str, Any] = {"model": model, "definition": definition, "mean": _row(total)}
    detection = {side: result["mean"].pop(f"{side}_matches", None) for side in _SIDES}
    if total.blurred_matches is not None:
        result["detection"] = detection
    result["pictures"] = [_row(score) for score in scores]
    finite = json.loads(json.dumps(result), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2)


def _asked(scores: Sequence[Score]) -> list[_Measure]:
    return [measure for measure in _MEASURES if None not in measure.of(scores[0])]


def _compared(before: float, after: float, form: str) -> list[str]:
    return [_number(before, form), _number(after, form), _number(after - before, f"+{form}")]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _counts(before: Matches, after: Matches) -> str:
    seen = ", ".join(
        f"{side} {matches.true_positives} of them and {matches.false_positives} others"
        for side, matches in zip(_SIDES, (before, after), strict=True)
    )
    return f"boxes: sharp {before.true_positives + before.misses}; {seen}"


def _row(score: Score) -> dict[str, Any]:
    """A score without what was not asked, with the rates beside the counts they are of."""
    row = {name: value for name, value in asdict(score).items() if value is not None}
    for name in row:
        if name.endswith("_matches"):
            row[name] |= {rate: getattr(getattr(score, name), rate) for rate in _RATES}
    return row


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(" | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
