"""A tiny measurement of metrics: the figures are consistent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def test_the_share_is_the_sum_of_its_parts() -> None:
    arguments = ["--json", "--crop", "32", "--updates", "2", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.telemetry", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    cost = {name: figures[f"microseconds_per_{name}"] / 1e6 for name in ("update", "report", "scrape", "note")}
    assert all(seconds > 0 for seconds in cost.values())
    share = (
        cost["update"] / figures["seconds_per_update"] + cost["report"] / 10 + cost["scrape"] / 15 + cost["note"] / 3
    )
    assert figures["share_of_time"] == pytest.approx(share, rel=0.05)
    assert figures["with_to_without_of_each_round"] == [figures["with_to_without"]]
