"""The tables and the JSON of scores: what is averaged, what is summed, and what is not a number."""

import json
import math

import pytest

from deblur.evaluation.detection import Matches
from deblur.evaluation.scores import Score, as_json, mean, summary, table


def score(key: str, *values: float, **others: float | Matches) -> Score:
    names = ("blurred_psnr", "restored_psnr", "blurred_ssim", "restored_ssim")
    return Score(key=key, **dict(zip(names, values, strict=True)), **others)


PLAIN = [score("a", 20, 30, 0.5, 0.7), score("scene-1", 24, 25, 0.7, 0.8)]
FULL = [
    score(
        "a",
        *(20, 30, 0.5, 0.7),
        blurred_lpips=0.4,
        restored_lpips=0.2,
        blurred_matches=Matches(1, 0, 3),
        restored_matches=Matches(3, 1, 1),
    ),
    score(
        "b",
        *(24, 25, 0.7, 0.8),
        blurred_lpips=0.2,
        restored_lpips=0.3,
        blurred_matches=Matches(0, 0, 1),
        restored_matches=Matches(0, 0, 1),
    ),
]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]


def test_the_mean_is_of_the_pictures_values_and_matches_are_summed() -> None:
    assert mean(PLAIN) == score("mean", 22, 27.5, 0.6, 0.75)
    found = mean(FULL)
    assert (found.blurred_lpips, found.restored_lpips) == pytest.approx((0.3, 0.25))
    assert (found.blurred_matches, found.restored_matches) == (Matches(1, 0, 4), Matches(3, 1, 2))


def test_the_table_has_a_row_per_picture_and_columns_per_metric() -> None:
    titles = ["key", "blurred PSNR", "restored PSNR", "blurred SSIM", "restored SSIM"]
    assert cells(table(PLAIN))[0] == titles
    assert cells(table(PLAIN))[2] == ["scene-1", "24.00", "25.00", "0.7000", "0.8000"]
    assert cells(table(FULL))[0] == [*titles, "blurred LPIPS", "restored LPIPS"]
    assert cells(table(FULL))[1] == ["a", "20.00", "30.00", "0.5000", "0.7000", "0.4000", "0.2000"]
    assert len({line.index("|") for line in table(PLAIN).splitlines()}) == 1


def test_the_summary_has_a_row_per_metric_with_its_change() -> None:
    plain = [
        ["metric", "better", "blurred", "restored", "change"],
        ["PSNR dB", "higher", "22.00", "27.50", "+5.50"],
        ["SSIM", "higher", "0.6000", "0.7500", "+0.1500"],
    ]
    assert cells(summary(PLAIN)) == plain
    assert cells(summary(FULL)) == [
        *plain,
        ["LPIPS", "lower", "0.3000", "0.2500", "-0.0500"],
        ["detection precision", "higher", "1.0000", "0.7500", "-0.2500"],
        ["detection recall", "higher", "0.2000", "0.6000", "+0.4000"],
        ["detection F1", "higher", "0.3333", "0.6667", "+0.3333"],
    ]
    assert summary(FULL).endswith("boxes: sharp 5; blurred 1 of these and 0 others, restored 3 of these and 1 others")


def test_a_rate_of_nothing_is_a_dash_and_null() -> None:
    scores = [score("a", 20, 30, 0.5, 0.7, blurred_matches=Matches(misses=2), restored_matches=Matches(2, 0, 0))]
    assert cells(summary(scores))[3:] == [
        ["detection precision", "higher", "-", "1.0000", "-"],
        ["detection recall", "higher", "0.0000", "1.0000", "+1.0000"],
        ["detection F1", "higher", "0.0000", "1.0000", "+1.0000"],
    ]
    found = json.loads(as_json(scores, "runs/x", "as defined"), parse_constant=pytest.fail)
    blurred = {"true_positives": 0, "false_positives": 0, "misses": 2, "precision": None, "recall": 0, "f1": 0}
    assert found["detection"]["blurred"] == found["pictures"][0]["blurred_matches"] == blurred


def test_json_has_the_numbers_of_both_tables() -> None:
    found = json.loads(as_json(FULL, "runs/x", "as defined"))
    assert (found["model"], found["definition"]) == ("runs/x", "as defined")
    assert found["mean"]["restored_lpips"] == pytest.approx(0.25)
    assert "restored_matches" not in found["mean"]
    assert found["detection"]["restored"]["recall"] == pytest.approx(0.6)
    assert found["pictures"][1]["blurred_lpips"] == 0.2
    assert found["pictures"][0]["restored_matches"]["precision"] == 0.75


def test_json_leaves_out_metrics_that_were_not_measured() -> None:
    found = json.loads(as_json(PLAIN, "runs/x", ""))
    assert set(found) == {"model", "definition", "mean", "pictures"}
    assert set(found["mean"]) == set(found["pictures"][0])
    assert set(found["mean"]) == {"key", "blurred_psnr", "restored_psnr", "blurred_ssim", "restored_ssim"}


def test_infinite_psnr_is_null_in_json() -> None:
    scores = [score("a", 20, math.inf, 0.5, 1)]
    found = json.loads(as_json(scores, "runs/x", ""), parse_constant=pytest.fail)
    assert found["pictures"][0]["restored_psnr"] is None
    assert found["mean"]["blurred_psnr"] == 20
    assert cells(summary(scores))[1] == ["PSNR dB", "higher", "20.00", "inf", "+inf"]
