"""The record of a search: what it keeps, which trial is best, which records it refuses to resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.storage.lease import Lease, acquire_lease
from deblur.config import recipes
from deblur.search.record import Search, Trial
from deblur.search.space import applied
from deblur.search.table import counts, table
from deblur.train import parse

SETTINGS = {"recipe": {"seed": 0}, "space": {"critic_updates": "1:5"}, "first": [{"critic_updates": 1}]}


def metrics(images_seen: int, psnr: float, **more: Any) -> dict[str, Any]:
    values = {"images_seen": images_seen, "validation_psnr": psnr, "validation_ssim": psnr / 40, "ranks": 2}
    return values | {"threads_per_rank": 4, "images_per_second": 10.0, "trial_id": "of Tune"} | more


def trial(number: int, state: str, *curve: float) -> Trial:
    made = Trial(number=number, values={"critic_updates": number + 1}, state=state)
    for nth, psnr in enumerate(curve):
        made.add(metrics(100 * (nth + 1), psnr))
    return made


def search(folder: Path, *trials: Trial, **settings: Any) -> Search:
    made = Search(str(folder / "s"), recipes.demo(), "psnr", SETTINGS | settings)
    made.trials += trials
    return made


def written(made: Search) -> Search:
    with acquire_lease(made.url, expiry_s=0.1) as holder:
        made.write(holder)
    return made


def test_a_repeated_validation_counts_once() -> None:
    found = trial(0, "running", 25.0, 26.0)
    assert not found.add(metrics(100, 99.0))
    assert not found.add(metrics(200, 99.0))
    assert found.add(metrics(300, 27.0))
    assert [point["validation_psnr"] for point in found.curve] == [25.0, 26.0, 27.0]
    assert "trial_id" not in found.curve[0]
    assert (found.ranks, found.threads_per_rank) == (2, 4)


def test_the_newest_validation_counts_not_the_best(tmp_path: Path) -> None:
    found = search(tmp_path, trial(0, "finished", 25.0, 29.0, 26.0), trial(1, "finished", 25.0, 26.0, 27.0))
    assert [t.number for t in found.ranked()] == [1, 0]


def test_the_best_trial_is_a_finished_one(tmp_path: Path) -> None:
    found = search(tmp_path, trial(0, "stopped", 30.0), trial(1, "finished", 27.0), trial(2, "finished", 26.0))
    assert found.best() is found.trials[1]
    assert [t.number for t in found.ranked()] == [0, 1, 2]
    assert search(tmp_path, trial(0, "stopped", 30.0), trial(1, "failed")).best() is None


def test_trials_are_ranked_by_the_chosen_metric(tmp_path: Path) -> None:
    found = search(tmp_path, trial(0, "finished", 26.0), trial(1, "finished", 27.0))
    found.trials[0].curve[-1]["validation_ssim"] = 0.99
    found.metric = "ssim"
    assert found.best() is found.trials[0]


def test_a_written_record_is_read_back(tmp_path: Path) -> None:
    failed = trial(1, "failed", 20.0)
    failed.reason = "Diverged: not finite"
    made = written(search(tmp_path, trial(0, "finished", 25.0, 26.0), failed, trial(2, "running")))
    assert search(tmp_path).trials == made.trials
    names = [trial["name"] for trial in json.loads((tmp_path / "s/search.json").read_text())["trials"]]
    assert names == ["s-000", "s-001", "s-002"]


def test_best_json_is_a_recipe_for_training(tmp_path: Path) -> None:
    made = written(search(tmp_path, trial(0, "finished", 25.0), trial(4, "finished", 26.0)))
    best = tmp_path / "s/best.json"
    assert parse(["--recipe", str(best)]).recipe == made.recipe_of(made.trials[1])
    content = json.loads(best.read_text())
    assert content["recipe"]["loss"]["critic_updates"] == 5
    expected = {"trial": "s-004", "images_seen": 100, "ranks": 2, "threads_per_rank": 4, "validation_psnr": 26.0}
    assert content.items() >= expected.items()


def test_without_a_finished_trial_there_is_no_best_json(tmp_path: Path) -> None:
    written(search(tmp_path, trial(0, "stopped", 25.0)))
    assert not (tmp_path / "s/best.json").exists()


@pytest.mark.parametrize(
    ("change", "change_text"),
    [
        ({"recipe": {"seed": 1}}, r"recipe\.seed: 0 -> 1"),
        ({"space": {"critic_updates": "1:3"}}, r"space\.critic_updates: 1:5 -> 1:3"),
        ({"space": {}}, r"space\.critic_updates: 1:5 -> None"),
        ({"sampler": "tpe"}, r"sampler: None -> tpe"),
    ],
)
def test_a_search_does_not_resume_with_other_settings(tmp_path: Path, change: dict[str, Any], change_text: str) -> None:
    written(search(tmp_path, trial(0, "finished", 25.0)))
    with pytest.raises(InputError, match=rf"s/search\.json .*\({change_text}\).*--search"):
        search(tmp_path, **change)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"search": {}, "trials": [{"no": 1}]}'])
def test_a_malformed_record_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/search.json").write_text(text)
    with pytest.raises(InputError, match=r"s/search\.json.*--search"):
        search(tmp_path)
    assert (tmp_path / "s/search.json").read_text() == text


def test_a_record_of_version_0_1_is_refused_and_kept(tmp_path: Path) -> None:
    made = written(search(tmp_path, trial(0, "finished", 25.0)))
    content = json.loads((tmp_path / "s/search.json").read_text())
    old = json.dumps({name: value for name, value in content.items() if name != "version"})
    (tmp_path / "s/search.json").write_text(old)
    with pytest.raises(InputError, match=r"s/search\.json is of version 1.*--search"):
        search(tmp_path)
    assert (tmp_path / "s/search.json").read_text() == old
    assert made.trials


def test_best_json_of_version_0_1_is_still_a_recipe(tmp_path: Path) -> None:
    written(search(tmp_path, trial(0, "finished", 25.0)))
    best = tmp_path / "s/best.json"
    content = json.loads(best.read_text())
    adam = content["recipe"]["adam"]
    for old, new in recipes.RENAMED.items():
        adam[old] = adam.pop(new)
    best.write_text(json.dumps(content))
    assert parse(["--recipe", str(best)]).recipe == applied(recipes.demo(), {"critic_updates": 1})


def test_only_the_holder_of_the_lease_writes(tmp_path: Path) -> None:
    made = search(tmp_path, trial(0, "finished", 25.0))
    with acquire_lease(made.url, expiry_s=0.1) as holder:
        holder.lease = Lease(holder.lease.token, "previous holder")
        with pytest.raises(InputError, match=r"lease|taken"):
            made.write(holder)
    assert not (tmp_path / "s/search.json").exists()


def test_the_table_has_every_trial_best_first_with_the_reason_of_a_failure(tmp_path: Path) -> None:
    failed = trial(2, "failed")
    failed.reason = "RanksFailed: out of memory"
    found = search(tmp_path, trial(0, "stopped", 25.0), trial(1, "finished", 26.0), failed, trial(3, "running"))
    lines = [line.split() for line in table(found).splitlines()]
    assert lines[0] == ["trial", "state", "images", "PSNR", "SSIM", "images/s", "critic_updates"]
    assert lines[1] == ["s-001", "finished", "100", "26.000", "0.6500", "10.0", "2"]
    assert [line[0] for line in lines[1:]] == ["s-001", "s-000", "s-002", "s-003"]
    assert table(found).splitlines()[3].endswith("3  RanksFailed: out of memory")
    assert counts(found.trials) == "1 stopped, 1 finished, 1 failed, 1 running"
