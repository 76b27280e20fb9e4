"""The record of a search: what it keeps, which trial is best, which records it refuses to resume."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution

from cluster.errors import InputError
from cluster.storage.lease import Lease, acquire_lease
from deblur.config import recipes
from deblur.config.recipes import with_flags
from deblur.search.record import Search
from deblur.train import parse
from tests.deblur.search.searches import DEMO, metrics, search, trial


def written(made: Search) -> Search:
    with acquire_lease(made.url, expiry_s=0.1) as holder:
        made.write(holder)
    return made


def test_a_trial_keeps_its_validations_without_repeated_ones_and_without_other_metrics() -> None:
    found = trial(0, "running", 25.0, 26.0)
    assert not found.add(metrics(200, 99.0))
    assert found.add(metrics(300, 27.0) | {"trial_id": "of Tune"})
    assert [point["validation_psnr"] for point in found.curve] == [25.0, 26.0, 27.0]
    assert "trial_id" not in found.curve[-1]
    assert (found.ranks, found.threads_per_rank) == (2, 4)


def test_trials_are_ranked_by_their_newest_score_and_the_best_is_a_finished_one(tmp_path: Path) -> None:
    trials = [trial(0, "finished", 25.0, 29.0, 26.0), trial(1, "finished", 27.0), trial(2, "stopped", 30.0)]
    found = search(tmp_path, *trials, trial(3, "failed"))
    assert [t.number for t in found.ranked()] == [2, 1, 0]
    assert found.best() is found.trials[1]
    found.trials[0].curve[-1]["validation_ssim"] = 0.99
    assert search(tmp_path, *found.trials, metric="ssim").best() is found.trials[0]
    assert search(tmp_path, trial(0, "stopped", 30.0)).best() is None


def test_a_written_record_is_read_back(tmp_path: Path) -> None:
    failed = trial(1, "failed", 20.0, reason="Diverged: not finite")
    made = written(search(tmp_path, trial(0, "stopped", 25.0, 26.0), failed, trial(2, "running"), trials=4))
    assert search(tmp_path).trials == made.trials
    assert made.count_left() == 2
    names = [trial["name"] for trial in json.loads((tmp_path / "s/search.json").read_text())["trials"]]
    assert names == ["s-000", "s-001", "s-002"]
    assert not (tmp_path / "s/best.json").exists(), "no trial has finished"


def test_best_json_is_a_recipe_for_training_also_with_names_of_version_0_1(tmp_path: Path) -> None:
    best = tmp_path / "s/best.json"
    written(search(tmp_path, trial(0, "finished", 25.0), trial(4, "finished", 26.0)))
    expected = with_flags(DEMO, {"critic_updates": 5})
    assert parse(["--recipe", str(best)]).recipe == expected
    content = json.loads(best.read_text())
    summary = {"trial": "s-004", "images_seen": 100, "ranks": 2, "threads_per_rank": 4, "validation_psnr": 26.0}
    assert content.items() >= summary.items()
    adam = content["recipe"]["adam"]
    for old, new in recipes.RENAMED.items():
        adam[old] = adam.pop(new)
    best.write_text(json.dumps(content))
    assert parse(["--recipe", str(best)]).recipe == expected


@pytest.mark.parametrize(
    ("change", "change_text"),
    [
        ({"recipe": replace(DEMO, seed=1)}, r"recipe\.seed: 0 -> 1"),
        ({"space": {"flip": CategoricalDistribution([True])}}, r"space\.critic_updates: 1:5 -> None"),
        ({"sampler": "tpe"}, r"sampler: random -> tpe"),
        ({"metric": "ssim"}, r"metric: psnr -> ssim"),
        ({"grace_images": 50}, r"grace_images: 100 -> 50"),
        ({"reduction": 2}, r"reduction: 4 -> 2"),
    ],
)
def test_a_search_does_not_resume_with_other_settings(tmp_path: Path, change: dict[str, Any], change_text: str) -> None:
    written(search(tmp_path, trial(0, "finished", 25.0)))
    with pytest.raises(InputError, match=rf"s/search\.json .*\(.*{change_text}.*\).*--search"):
        search(tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _: "", ""),
        (lambda _: "[]", ""),
        (lambda _: '{"search": {}, "trials": [{"no": 1}]}', ""),
        (lambda text: text.replace('"version": 2,', ""), "version 1"),
    ],
)
def test_a_malformed_record_or_one_of_version_0_1_is_refused_and_kept(
    tmp_path: Path, change: Callable[[str], str], named: str
) -> None:
    record = tmp_path / "s/search.json"
    written(search(tmp_path, trial(0, "finished", 25.0)))
    record.write_text(change(record.read_text()))
    before = record.read_text()
    with pytest.raises(InputError, match=rf"s/search\.json.*{named}.*--search"):
        search(tmp_path)
    assert record.read_text() == before


def test_only_the_holder_of_the_lease_writes(tmp_path: Path) -> None:
    made = search(tmp_path, trial(0, "finished", 25.0))
    with acquire_lease(made.url, expiry_s=0.1) as holder:
        holder.lease = Lease(holder.lease.token, "previous holder")
        with pytest.raises(InputError, match=r"lease|taken"):
            made.write(holder)
    assert not (tmp_path / "s/search.json").exists()
