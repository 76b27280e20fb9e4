"""The search command: what it refuses before any work, what its trials are, and one small search that goes on."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.config import cli
from deblur.config.cli import SharedSettings
from deblur.data.shards import Index, read_index, write_index
from deblur.search import tpe
from deblur.search.driver import Plan, _configuration, _resume_fingerprint, _validations, prepare, tune
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


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space", "critic_updates=5:2"], "the range is empty"),
        (["--space", "critic_update=1:2"], r"did you mean critic_updates\?"),
        (["--space", "crop=24,512"], r"--crop 512 is larger than the smallest training picture \(56x48\)"),
        (["--space", "nowhere.json"], r"nowhere\.json"),
        (["--points", "nowhere.json"], r"nowhere\.json"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_any_work(
    data: str, tmp_path: Path, arguments: list[str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        prepared(data, tmp_path / "runs", *arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "0"], "--trials is 0; it must be at least 1"),
        (["--reduction", "1"], "--reduction is 1; it must be more than 1"),
        (["--nodes-per-trial", "2", "--trials-per-node", "2"], "a trial has several machines or a part of one"),
    ],
)
def test_flags_out_of_range_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(flags)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())  # as the terminal's width breaks it
    assert message in said


def test_a_point_that_makes_no_recipe_is_refused(data: str, tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text('[{"generator_lr": 2}]')
    with pytest.raises(InputError, match=r"generator_lr is 2\.0; it must be in \(0, 1\)"):
        prepared(data, tmp_path, "--points", str(tmp_path / "points.json"))


def test_without_a_validation_split_nothing_could_be_judged(data: str, tmp_path: Path) -> None:
    store, index = open_store(tmp_path), read_index(open_store(data))
    write_index(store, Index(made=index.made, splits={"train": index.splits["train"]}))
    with pytest.raises(
        InputError, match="has no validation split, by which trials are judged; pack it again with --val"
    ):
        prepared(str(tmp_path), tmp_path / "runs")


def test_tpe_without_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'deblur\[tpe\]'"):
        tpe.check()


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(num_cpus=2, logging_level="WARNING", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_cpus")
def test_more_nodes_per_trial_than_the_cluster_has_are_refused_with_the_mend(data: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of 2 nodes .* --nodes 1"):
        tune(prepared(data, tmp_path, "--search", "s", "--nodes-per-trial", "2", "--wait-s", "0"))
    assert not (tmp_path / "s").exists()


# ---- what trials are


def test_the_recipe_comes_first_then_the_points_then_draws(data: str, tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text('[{"generator_lr": 0.1}]')
    arguments = ["--points", str(tmp_path / "points.json"), "--critic-updates", "3", "--space", "objective=wgan-gp"]
    plan = prepared(data, tmp_path, *arguments)
    assert "critic_updates" not in plan.space, "its flag was given"
    own, point, drawn = (plan.values_of(number, []) for number in range(3))
    assert own["generator_lr"] == 1e-4
    assert own["content_weight"] == 100.0
    assert point == {**own, "generator_lr": 0.1}
    assert drawn == prepared(data, tmp_path, *arguments).values_of(2, [])
    assert drawn != prepared(data, tmp_path, *arguments, "--seed", "1").values_of(2, [])


def test_a_recipe_outside_of_the_space_is_not_tried(data: str, tmp_path: Path) -> None:
    assert prepared(data, tmp_path, "--space", "critic_updates=1:3").first == []


def test_trials_differ_in_what_is_varied_and_in_nothing_else(data: str, tmp_path: Path) -> None:
    plan = prepared(data, tmp_path, "--search", "s", "--keep", "1", "--nodes-per-trial", "2", "--check")
    found = Search(str(tmp_path / "s"), plan.settings.recipe, "psnr", {})
    made = [_configuration(plan, found, Trial(number=n, values=plan.values_of(n, []))) for n in range(4)]
    settings = [cli.from_plain(TrainSettings, one["settings"]) for one in made]
    assert [one.run for one in settings] == [f"s/s-00{n}" for n in range(4)]
    assert [one["name"] for one in made] == [f"s-00{n}" for n in range(4)]
    recipe = settings[0].recipe
    assert (recipe.name, recipe.seed, recipe.data.images) == ("s", 0, 160)
    for one in settings:
        assert (one.nodes, one.keep, one.check, one.validate_images) == (2, 1, False, 10)
        same = replace(one, run="", recipe=replace(one.recipe, loss=recipe.loss, adam=recipe.adam))
        assert same == replace(settings[0], run="")
    assert len({one.recipe for one in settings}) == 4
    assert json.loads(json.dumps(made)) == made, "plain values"


def test_the_record_names_all_that_decides_the_result(data: str, tmp_path: Path) -> None:
    same = {"runs", "trials", "at_once", "threads", "checkpoint_s", "wait_s", "keep", "cache_dir", "metrics_port"}
    plan = prepared(data, tmp_path)
    for change in (["--seed", "1"], ["--images", "80"], ["--reduction", "2"], ["--metric", "ssim"], ["--crop", "28"]):
        assert _resume_fingerprint(prepared(data, tmp_path, *change)) != _resume_fingerprint(plan), change
    for change in (["--trials", "99"], ["--at-once", "1"], ["--keep", "5"], ["--wait-s", "1"]):
        assert _resume_fingerprint(prepared(data, tmp_path, *change)) == _resume_fingerprint(plan), change
    assert same < {field.name for field in dataclasses.fields(plan.settings)}


def test_every_setting_of_a_training_reaches_the_trials_or_is_theirs() -> None:
    own = {"run", "nodes", "min_nodes", "allow_recipe_change"}
    assert {f.name for f in dataclasses.fields(TrainSettings)} == {
        f.name for f in dataclasses.fields(SharedSettings)
    } | own


def test_a_trial_says_again_what_it_reported_up_to_its_checkpoint(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "s/s-000"))
    assert list(_validations(run)) == []
    run.write_metrics()
    assert list(_validations(run)) == [], "killed before its first report"
    line: dict[str, Any] = {"images_per_second": 9.0, "ranks": 1, "threads_per_rank": 2, "validation_ssim": 0.5}
    for seen in (10, 20, 30):
        run.add_metrics({"images_seen": seen - 5, "images_per_second": 9.0})
        more = {"images_seen": seen, "validation_psnr": float(seen), "validation_blurred_psnr": 1.0}
        run.add_metrics(line | more | {"content": 3.0})
    run.write_metrics()
    run.checkpoints.save(20, {"state.pt": b"x"}, 20.0)
    run.checkpoints.wait()
    found = list(_validations(Run(run.url)))
    assert [point["images_seen"] for point in found] == [10, 20]
    assert found[0] == line | {"images_seen": 10, "validation_psnr": 10.0, "validation_blurred_psnr": 1.0}


# ---- a search


@pytest.mark.usefixtures("two_cpus")
def test_a_search_is_made_once_and_its_best_is_what_its_run_says(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--search", "s", "--images", "32", "--trials", "1", "--critic-updates", "1"]
    tune(prepared(data, tmp_path, *arguments))
    assert "1 trials at once" in capsys.readouterr().out
    record = json.loads((tmp_path / "s/search.json").read_text())["trials"]
    assert record[0]["values"]["content_weight"] == 100.0
    assert {trial["state"] for trial in record} <= {"finished", "stopped"}
    assert {(trial["ranks"], trial["threads_per_rank"]) for trial in record} == {(1, 2)}
    found = tune(prepared(data, tmp_path, *arguments))
    out = capsys.readouterr().out
    assert "all its trials have ended already" in out
    assert "starts" not in out
    best = found.best()
    assert best is not None
    metrics = Run(str(tmp_path / "s" / found.name_of(best))).read_metrics()
    assert metrics[-1]["validation_psnr"] == best.score("psnr") == max(t.score("psnr") for t in found.ranked())
    assert {"report.html", "report.png", "best.json"} <= set(os.listdir(tmp_path / "s"))
