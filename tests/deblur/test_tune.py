"""The search command: what it refuses before any work, what its trials are, and one small search that resumes."""

import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.errors import Diverged, InputError
from cluster.storage import open_store
from cluster.storage.lease import acquire_lease
from deblur.config.cli import SharedSettings
from deblur.data.index import Index, read_index, write_index
from deblur.search.driver import _Driver, _validations, prepare, run_search
from deblur.search.record import Search
from deblur.training.run import Run
from deblur.training.settings import TrainSettings
from deblur.tune import parse
from tests.datasets import write_dataset
from tests.deblur.test_train import SMALL


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(open_store(folder), train=43)
    return str(folder)


def flags(data: str, folder: Path, *arguments: str) -> list[str]:
    return [*SMALL, "--data", data, "--runs", str(folder), "--search", "s", "--images", "160", *arguments]


def prepared(data: str, folder: Path, *arguments: str) -> Search:
    return prepare(*parse(flags(data, folder, *arguments)))


def started(search: Search, count: int) -> list[Any]:
    """The functions that run the first trials of a search, which are added to it."""
    with acquire_lease(search.url) as holder:
        driver = _Driver(search, holder)
        return [driver.ask()[1] for _ in range(count)]


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--space", "crop=24,512"], r"--crop 512 .*56x48"),
        (["--space", "nowhere.json"], r"nowhere\.json"),
        (["--points", "nowhere.json"], r"nowhere\.json"),
        (["--points", "points.json"], r"generator_lr is 2\.0"),
    ],
)
def test_an_invalid_search_is_refused_before_any_work(
    data: str, tmp_path: Path, arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("points.json").write_text('[{"generator_lr": 2}]')
    with pytest.raises(InputError, match=named):
        prepared(data, tmp_path / "runs", *arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trials", "0"], ["--trials is 0"]),
        (["--reduction", "1"], ["--reduction is 1"]),
        (["--reduction", "2.5"], ["--reduction", "2.5"]),
        (["--nodes-per-trial", "2", "--trials-per-node", "2"], ["--nodes-per-trial 2", "--trials-per-node 2"]),
    ],
)
def test_flags_out_of_range_are_refused(
    arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())  # as the terminal's width breaks it
    assert [text for text in named if text not in message] == []


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
    with pytest.raises(InputError, match=r"1 of 2 nodes .*--nodes-per-trial 1"):
        run_search(*parse(flags(data, tmp_path, "--nodes-per-trial", "2", "--wait-s", "0")))
    assert not (tmp_path / "s").exists()


# ---- what trials are


def test_the_recipe_comes_first_then_the_points_then_draws(data: str, tmp_path: Path) -> None:
    (tmp_path / "points.json").write_text('[{"generator_lr": 0.1}]')
    arguments = ["--points", str(tmp_path / "points.json"), "--critic-updates", "3", "--space", "objective=wgan-gp"]
    search, other = (prepared(data, tmp_path, *arguments, *more) for more in ([], ["--seed", "1"]))
    assert "critic_updates" not in search.space, "its flag was given"
    started(search, 3)
    started(other, 3)
    own, point, drawn = (trial.values for trial in search.trials)
    assert (own["generator_lr"], own["content_weight"]) == (1e-4, 100.0)
    assert point == {**own, "generator_lr": 0.1}
    assert drawn != other.trials[2].values
    assert prepared(data, tmp_path / "other", "--space", "critic_updates=1:3").first == [], "the recipe has 5"


def test_trials_differ_only_in_what_is_searched(data: str, tmp_path: Path) -> None:
    search = prepared(data, tmp_path, "--keep", "1", "--nodes-per-trial", "2", "--check")
    runs = started(search, 4)
    settings: list[TrainSettings] = [run.args[0] for run in runs]
    assert [one.run for one in settings] == [f"s/s-00{n}" for n in range(4)]
    recipe = settings[0].recipe
    assert (recipe.name, recipe.seed, recipe.data.images) == ("s", 0, 160)
    for one in settings:
        assert (one.nodes, one.keep, one.check, one.validate_images) == (2, 1, False, 10)
        same = replace(one, run="", recipe=replace(one.recipe, loss=recipe.loss, adam=recipe.adam))
        assert same == replace(settings[0], run="")
    assert [one.recipe for one in settings] == [search.recipe_of(trial) for trial in search.trials]
    assert len({one.recipe for one in settings}) == 4
    assert [run.args for run in pickle.loads(pickle.dumps(runs))] == [
        (one, search.settings.placement) for one in settings
    ]


def test_every_setting_of_a_training_is_shared_or_the_trials_own() -> None:
    names = {field.name for field in fields(TrainSettings)} - {field.name for field in fields(SharedSettings)}
    assert names <= {"run", "nodes", "min_nodes", "init_from", "allow_recipe_change"}


def test_a_search_resumes_with_flags_that_do_not_change_its_trials_only(data: str, tmp_path: Path) -> None:
    started(prepared(data, tmp_path), 1)
    for change in (["--trials", "99"], ["--at-once", "1"], ["--keep", "5"], ["--wait-s", "1"]):
        assert len(prepared(data, tmp_path, *change).trials) == 1
    for flag, value in (("--seed", "1"), ("--images", "80"), ("--crop", "28"), ("--reduction", "2")):
        with pytest.raises(InputError, match=rf"{flag[2:]}: \w+ -> {value}"):
            prepared(data, tmp_path, flag, value)


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


def test_a_search_records_each_outcome_and_resumes_without_repeating_an_ended_trial(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--trials", "5", "--grace-images", "40", "--reduction", "2"]
    search = prepared(data, tmp_path, *arguments)
    with acquire_lease(search.url) as holder:
        driver = _Driver(search, holder)
        assert [driver.ask()[0] for _ in range(4)] == [0, 1, 2, 3]
        assert not driver.reported(0, validation(40, 25.0))
        assert driver.reported(1, validation(40, 24.0)), "stopped by ASHA"
        driver.ended(2, Diverged("not finite\nat update 3"))
        assert not driver.reported(0, validation(160, 20.0)), "never stopped at the end"
        driver.ended(0, None)
        assert not driver.reported(3, validation(40, 26.0))
    expected = [("finished", 160, ""), ("stopped", 40, ""), ("failed", 0, "Diverged: not finite"), ("running", 40, "")]
    assert states(search) == expected
    assert "s-003: 40 images, PSNR 26.0000" in capsys.readouterr().out

    resumed = prepared(data, tmp_path, *arguments)
    assert states(resumed) == expected
    assert resumed.count_left() == 2
    with acquire_lease(search.url) as holder:
        driver = _Driver(resumed, holder)
        number, run = driver.ask()
        assert (number, run.args[0].recipe) == (3, search.recipe_of(search.trials[3]))
        assert not driver.reported(3, validation(40, 1.0)), "repeated by the resumed trial, and counted once"
        assert driver.ask()[0] == 4
        assert driver.reported(4, validation(40, 24.5)), "compared with trials of the record"
    assert states(resumed) == [*expected, ("stopped", 40, "")]

    retried = prepared(data, tmp_path, *arguments, "--retry-failed")
    assert [trial.state for trial in retried.trials] == ["finished", "stopped", "running", "running", "stopped"]


# ---- a search


@pytest.mark.usefixtures("two_cpus")
def test_a_finished_search_is_not_repeated_and_its_best_score_is_that_of_the_run(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = parse(flags(data, tmp_path, "--images", "32", "--trials", "1", "--critic-updates", "1"))
    assert run_search(replace(command[0], check=True), command[1]) is None
    assert not (tmp_path / "s").exists(), "--check starts no trial"
    assert run_search(*command) is None
    assert "1 concurrent trials" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "s/search.json").read_text())["trials"]
    assert record["values"]["content_weight"] == 100.0
    assert (record["state"], record["ranks"], record["threads_per_rank"]) == ("finished", 1, 2)
    assert run_search(*command) is None
    out = capsys.readouterr().out
    assert "all trials have ended" in out
    assert "starting" not in out
    assert "best     s-000" in out
    metrics = Run(str(tmp_path / "s/s-000")).read_metrics()
    assert metrics[-1]["validation_psnr"] == record["curve"][-1]["validation_psnr"]
    assert {"report.html", "report.png", "best.json"} <= set(os.listdir(tmp_path / "s"))
