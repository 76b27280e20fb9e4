"""The search command: what it refuses before any work, what its trials are, and one small search that resumes."""

import dataclasses
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.errors import Diverged, InputError
from cluster.storage import open_store
from cluster.storage.lease import acquire_lease
from deblur.config.cli import SharedSettings
from deblur.data.shards import Index, read_index, write_index
from deblur.search import driver as driver_module
from deblur.search.driver import Plan, _Driver, _resume_fingerprint, _trial_config, _validations, prepare, tune
from deblur.search.record import Search, Trial
from deblur.training.job import TrainSettings
from deblur.training.run import Run
from deblur.tune import parse
from tests.datasets import write_dataset
from tests.deblur.test_train import SMALL


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(open_store(folder), train=43)
    return str(folder)


def prepared(data: str, folder: Path, *arguments: str) -> Plan:
    return prepare(*parse([*SMALL, "--data", data, "--runs", str(folder), "--images", "160", *arguments]))


def values_of(plan: Plan, count: int) -> list[dict[str, Any]]:
    """The values of the first trials of a search."""
    url = str(Path(plan.settings.runs or "", plan.settings.search or ""))
    search = Search(url, plan.settings.recipe, "psnr", {})
    search.trials.clear()
    with acquire_lease(url) as holder:
        driver = _Driver(plan, search, holder)
        return [dict(driver._new().values) for _ in range(count)]


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--space", "critic_updates=5:2"], r"critic_updates=5:2"),
        (["--space", "critic_update=1:2"], r"critic_updates\?"),
        (["--space", "crop=24,512"], r"--crop 512 .*56x48"),
        (["--space", "nowhere.json"], r"nowhere\.json"),
        (["--points", "nowhere.json"], r"nowhere\.json"),
    ],
)
def test_an_invalid_search_is_refused_before_any_work(
    data: str, tmp_path: Path, arguments: list[str], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        prepared(data, tmp_path / "runs", *arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--trials", "0"], ["--trials is 0"]),
        (["--reduction", "1"], ["--reduction is 1"]),
        (["--reduction", "2.5"], ["--reduction is 2.5"]),
        (["--nodes-per-trial", "2", "--trials-per-node", "2"], ["--nodes-per-trial 2", "--trials-per-node 2"]),
    ],
)
def test_flags_out_of_range_are_refused(flags: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(flags)
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())  # as the terminal's width breaks it
    assert [text for text in named if text not in message] == []


def test_an_invalid_point_is_refused(data: str, tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text('[{"generator_lr": 2}]')
    with pytest.raises(InputError, match=r"generator_lr is 2\.0"):
        prepared(data, tmp_path, "--points", str(tmp_path / "points.json"))


def test_a_dataset_without_a_validation_split_is_refused(data: str, tmp_path: Path) -> None:
    store, index = open_store(tmp_path), read_index(open_store(data))
    write_index(store, Index(made=index.made, splits={"train": index.splits["train"]}))
    with pytest.raises(InputError, match=r"validation split.*--validation-scenes"):
        prepared(str(tmp_path), tmp_path / "runs")


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(num_cpus=2, logging_level="WARNING", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_cpus")
def test_more_nodes_per_trial_than_the_cluster_has_are_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of 2 nodes .*--nodes 1"):
        tune(prepared(data, tmp_path, "--search", "s", "--nodes-per-trial", "2", "--wait-s", "0"))
    assert not (tmp_path / "s").exists()


# ---- what trials are


def test_the_recipe_comes_first_then_the_points_then_draws(data: str, tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text('[{"generator_lr": 0.1}]')
    arguments = ["--points", str(tmp_path / "points.json"), "--critic-updates", "3", "--space", "objective=wgan-gp"]
    plan = prepared(data, tmp_path, *arguments)
    assert "critic_updates" not in plan.space, "its flag was given"
    own, point, drawn = values_of(plan, 3)
    assert own["generator_lr"] == 1e-4
    assert own["content_weight"] == 100.0
    assert point == {**own, "generator_lr": 0.1}
    assert drawn == values_of(prepared(data, tmp_path, *arguments), 3)[2]
    assert drawn != values_of(prepared(data, tmp_path, *arguments, "--seed", "1"), 3)[2]


def test_a_recipe_outside_the_space_is_not_tried(data: str, tmp_path: Path) -> None:
    assert prepared(data, tmp_path, "--space", "critic_updates=1:3").first == []


def test_trials_differ_only_in_what_is_searched(data: str, tmp_path: Path) -> None:
    plan = prepared(data, tmp_path, "--search", "s", "--keep", "1", "--nodes-per-trial", "2", "--check")
    found = Search(str(tmp_path / "s"), plan.settings.recipe, "psnr", {})
    trials = [Trial(number=n, values=values) for n, values in enumerate(values_of(plan, 4))]
    made = [_trial_config(plan, found, trial) for trial in trials]
    settings = [one.settings for one in made]
    assert [one.run for one in settings] == [f"s/s-00{n}" for n in range(4)]
    assert [one.name for one in made] == [f"s-00{n}" for n in range(4)]
    recipe = settings[0].recipe
    assert (recipe.name, recipe.seed, recipe.data.images) == ("s", 0, 160)
    for one in settings:
        assert (one.nodes, one.keep, one.check, one.validate_images) == (2, 1, False, 10)
        same = replace(one, run="", recipe=replace(one.recipe, loss=recipe.loss, adam=recipe.adam))
        assert same == replace(settings[0], run="")
    assert len({one.recipe for one in settings}) == 4
    assert pickle.loads(pickle.dumps(made)) == made


def test_the_fingerprint_covers_all_that_decides_the_result(data: str, tmp_path: Path) -> None:
    same = {"runs", "trials", "at_once", "threads", "checkpoint_s", "wait_s", "keep", "cache_dir", "metrics_port"}
    plan = prepared(data, tmp_path)
    for change in (["--seed", "1"], ["--images", "80"], ["--reduction", "2"], ["--metric", "ssim"], ["--crop", "28"]):
        assert _resume_fingerprint(prepared(data, tmp_path, *change)) != _resume_fingerprint(plan), change
    for change in (["--trials", "99"], ["--at-once", "1"], ["--keep", "5"], ["--wait-s", "1"]):
        assert _resume_fingerprint(prepared(data, tmp_path, *change)) == _resume_fingerprint(plan), change
    assert same < {field.name for field in dataclasses.fields(plan.settings)}


def test_every_setting_of_a_training_is_shared_or_the_trials_own() -> None:
    own = {"run", "nodes", "min_nodes", "allow_recipe_change"}
    assert {f.name for f in dataclasses.fields(TrainSettings)} == {
        f.name for f in dataclasses.fields(SharedSettings)
    } | own


def test_a_resumed_trial_repeats_its_reports_up_to_its_checkpoint(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "s/s-000"))
    assert list(_validations(run)) == []
    run.store.put("metrics.jsonl", b"")
    assert list(_validations(run)) == [], "killed before its first report"
    line: dict[str, Any] = {"images_per_second": 9.0, "ranks": 1, "threads_per_rank": 2, "validation_ssim": 0.5}
    for seen in (10, 20, 30):
        run.add_metrics({"images_seen": seen - 5, "images_per_second": 9.0})
        more = {"images_seen": seen, "validation_psnr": float(seen), "validation_blurred_psnr": 1.0}
        run.add_metrics(line | more | {"content": 3.0})
    run.save(20, {"state.pt": b"x"}, 20.0)
    run.checkpoints.wait()
    found = list(_validations(Run(run.url)))
    assert [point["images_seen"] for point in found] == [10, 20]
    assert found[0] == line | {"images_seen": 10, "validation_psnr": 10.0, "validation_blurred_psnr": 1.0}


# ---- the states of trials


def states(search: Search) -> list[tuple[str, int, str]]:
    return [(trial.state, trial.images_seen, trial.reason) for trial in search.trials]


def validation(images_seen: int, psnr: float) -> dict[str, Any]:
    scores = {"validation_psnr": psnr, "validation_ssim": 0.5, "validation_blurred_psnr": 1.0}
    return {"images_seen": images_seen, "images_per_second": 9.0, "ranks": 1, "threads_per_rank": 2, **scores}


def test_a_search_records_each_outcome_and_resumes_without_repeating_an_ended_trial(data: str, tmp_path: Path) -> None:
    arguments = ["--search", "s", "--trials", "5", "--grace-images", "40", "--reduction", "2"]
    plan, url = prepared(data, tmp_path, *arguments), str(tmp_path / "s")
    with acquire_lease(url) as holder:
        search = driver_module.read(plan)
        driver = _Driver(plan, search, holder)
        names = [driver.ask().name for _ in range(4)]
        assert not driver.reported(names[0], validation(40, 25.0))
        assert driver.reported(names[1], validation(40, 24.0)), "stopped by ASHA"
        driver.ended(names[2], Diverged("not finite"))
        assert not driver.reported(names[0], validation(160, 20.0)), "never stopped at the end"
        driver.ended(names[0], None)
        assert not driver.reported(names[3], validation(40, 26.0))
    expected = [("finished", 160, ""), ("stopped", 40, ""), ("failed", 0, "Diverged: not finite"), ("running", 40, "")]
    assert states(driver_module.read(plan)) == states(search) == expected

    with acquire_lease(url) as holder:
        resumed = driver_module.read(plan)
        driver = _Driver(plan, resumed, holder)
        fourth = driver.ask()
        assert fourth.name == names[3]
        assert fourth.settings.recipe == search.recipe_of(search.trials[3])
        assert not driver.reported(names[3], validation(40, 1.0)), "repeated by the resumed trial, and counted once"
        assert driver.ask().name == "s-004"
    assert states(resumed) == [*expected, ("running", 0, "")]
    assert not driver_module.is_done(resumed, plan.settings)

    retried = driver_module.read(prepared(data, tmp_path, *arguments, "--retry-failed"))
    assert [trial.state for trial in retried.trials] == ["finished", "stopped", "running", "running", "running"]


def test_a_resumed_search_draws_what_it_would_have_drawn(data: str, tmp_path: Path) -> None:
    plan = prepared(data, tmp_path, "--search", "s", "--sampler", "tpe")
    whole = values_of(plan, 14)
    with acquire_lease(str(tmp_path / "s")) as holder:
        search = Search(str(tmp_path / "s"), plan.settings.recipe, "psnr", {})
        del search.trials[7:]
        driver = _Driver(plan, search, holder)
        assert [dict(driver._new().values) for _ in range(7)] == whole[7:]


# ---- a search


@pytest.mark.usefixtures("two_cpus")
def test_a_finished_search_is_not_repeated_and_its_best_score_is_that_of_the_run(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--search", "s", "--images", "32", "--trials", "1", "--critic-updates", "1"]
    tune(prepared(data, tmp_path, *arguments))
    assert "1 concurrent trials" in capsys.readouterr().out
    record = json.loads((tmp_path / "s/search.json").read_text())["trials"]
    assert record[0]["values"]["content_weight"] == 100.0
    assert {trial["state"] for trial in record} <= {"finished", "stopped"}
    assert {(trial["ranks"], trial["threads_per_rank"]) for trial in record} == {(1, 2)}
    found = tune(prepared(data, tmp_path, *arguments))
    out = capsys.readouterr().out
    assert "all trials have ended" in out
    assert "starting" not in out
    best = found.best()
    assert best is not None
    metrics = Run(str(tmp_path / "s" / found.name_of(best))).read_metrics()
    assert metrics[-1]["validation_psnr"] == best.score("psnr") == max(t.score("psnr") for t in found.ranked())
    assert {"report.html", "report.png", "best.json"} <= set(os.listdir(tmp_path / "s"))
