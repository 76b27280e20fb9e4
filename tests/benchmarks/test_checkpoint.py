"""A tiny measurement of checkpoints: the figures are consistent."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import open_store
from cluster.storage.checkpoints import Checkpoints

REPOSITORY = Path(__file__).parents[2]


def test_a_throttled_store_delays_training_by_the_upload_time(tmp_path: Path) -> None:
    arguments = ["--recipe", "demo", "--crop", "32", "--updates", "2", "--rounds", "1", "--store", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.checkpoint", "--json", "--mb-per-s", "2", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    (saved,) = Checkpoints(open_store(tmp_path / "benchmark")).list()
    assert figures["size_bytes"] == sum(part.bytes for part in saved.files.values())
    assert figures["seconds_to_upload_waiting"] >= figures["size_bytes"] / 2e6 - 0.001  # rounded
    (none,), (waiting,) = (figures["total_s_of_each_turn"][way] for way in ("none", "waiting"))
    assert figures["seconds_held_up_waiting"] == pytest.approx(waiting - none, abs=0.002)
    assert {"torch", "processor", "cores"} <= figures["machine"].keys()
