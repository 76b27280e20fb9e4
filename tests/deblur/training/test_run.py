"""The files of a run: history over restarts, state as metrics, scrape targets."""

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.config.recipes import Recipe, to_json
from deblur.training.run import History, Origin, ReadOnlyRun, Run

FLOAT32 = "float32, on cpu"


def start(folder: Path, images_seen: int, computation: str = FLOAT32) -> Run:
    """A run that resumes from a checkpoint at `images_seen`, in batches of 8."""
    run = Run(str(folder / "run"))
    run.resume(images_seen, batch_size=8, computation=computation)
    return run


def history(**fields: int) -> History:
    return History(computation=FLOAT32, **fields)


def written(run: Run) -> History:
    if run._history_write:
        run._history_write.result()
    return History(**json.loads(run.store.get("history.json")))


def test_the_first_start_is_no_restart(tmp_path: Path) -> None:
    assert written(start(tmp_path, 0)) == history()


def test_progress_without_a_checkpoint_counts_as_lost_updates(tmp_path: Path) -> None:
    first = start(tmp_path, 0)
    first.record_progress(40, preemption_notice=False)
    assert written(first) == history(images_seen=40)
    second = start(tmp_path, 24)
    assert written(second) == history(images_seen=24, restarts=1, updates_lost=2)
    second.record_progress(32, preemption_notice=False)
    assert written(second).images_seen == 32
    assert written(start(tmp_path, 24)) == history(images_seen=24, restarts=2, updates_lost=3)


def test_a_restart_at_the_last_update_loses_nothing(tmp_path: Path) -> None:
    first = start(tmp_path, 0)
    first.record_progress(40, preemption_notice=True)
    written(first)
    assert written(start(tmp_path, 40)) == history(images_seen=40, restarts=1, preemption_notices=1)


def test_a_history_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(tmp_path, 0)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "run").write_text("no folder")
    run.record_progress(8, preemption_notice=False)
    run._history_write.result()
    assert "history.json" in caplog.text
    assert run.history.images_seen == 8


def test_a_history_that_cannot_be_read_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(tmp_path, 0).store.put("history.json", b'{"images_seen": 8, "rest')
    assert written(start(tmp_path, 8)) == history(images_seen=8)
    assert "history.json" in caplog.text


@pytest.mark.parametrize(
    "bad", [b"\xff\xfe", b'{"images_seen": Infinity}', b'{"images_seen": 1e999}', b"[]", b'{"restarts": "1"}']
)
def test_a_damaged_history_or_origin_is_set_aside(tmp_path: Path, bad: bytes) -> None:
    run, origin = start(tmp_path, 0), Origin(dataset="d", features="f")
    written(run)
    run.begin(Recipe(), origin)
    assert run.origin() == origin
    run.store.put("history.json", bad)
    run.store.put("origin.json", bad)
    assert written(start(tmp_path, 8)) == history(images_seen=8)
    assert run.origin() is None
    run.check(Recipe(), origin)
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        run.check(Recipe(seed=1), origin)


def test_a_damaged_recipe_is_taken_from_the_newest_checkpoint(tmp_path: Path) -> None:
    run, recipe = start(tmp_path, 0), Recipe(seed=3)
    run.begin(recipe, Origin(dataset="d", features="f"))
    run.store.put("recipe.json", b'{"seed": ')
    with pytest.raises(InputError, match=r"recipe\.json: "):
        run.recipe()
    run.checkpoints.save(8, {"recipe.json": to_json(recipe).encode()})
    run.checkpoints.wait()
    assert run.recipe() == recipe


def test_damaged_lines_of_metrics_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = start(tmp_path, 0)
    lines = [
        b'{"images_seen": 4}',
        b"",
        b'{"images_seen": 8, "ps',
        b"\xff\xfe",
        b'{"images_seen": "12"}',
        b"3",
        b'{"images_seen": 16}',
    ]
    run.store.put("metrics.jsonl", b"\n".join(lines))
    assert run.metrics_until(16) == [{"images_seen": 4}, {"images_seen": 16}]
    assert "left out 5 damaged lines of 7" in caplog.text


def test_state_has_the_newest_checkpoint_of_an_earlier_start(tmp_path: Path) -> None:
    run = start(tmp_path, 0)
    assert "checkpoint_timestamp_seconds" not in run.state()
    run.checkpoints.save(8, {"a": b"12345", "b": b"678"})
    run.checkpoints.wait()
    state = run.state()
    assert (state["checkpoints"], state["checkpoint_bytes"]) == (1, 8)

    again = Run(run.url)
    assert again.checkpoints.resume()
    assert again.state()["checkpoint_timestamp_seconds"] == state["checkpoint_timestamp_seconds"]
    assert (again.state()["checkpoints"], again.state()["checkpoint_bytes"]) == (0, 8)


def test_damaged_checkpoints_and_failed_uploads_count_as_failures(tmp_path: Path) -> None:
    run = start(tmp_path, 0)
    run.checkpoints.save(8, {"a": b"12345"})
    run.checkpoints.wait()
    open_store(run.url).put("checkpoints/000000000008/a", b"54321")
    again = Run(run.url)
    assert again.checkpoints.resume() is None
    assert again.state()["checkpoint_failures"] == 1

    def refuse() -> None:
        raise InputError("no longer yours")

    again.checkpoints._may_commit = refuse
    again.checkpoints.save(16, {"a": b"1"})
    with pytest.raises(InputError, match="no longer yours"):
        again.checkpoints.wait()
    assert again.state()["checkpoint_failures"] == 2


def test_a_change_of_precision_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(start(tmp_path, 0))
    written(start(tmp_path, 8))
    assert "earlier starts" not in capsys.readouterr().out
    other = "bfloat16, channels last, on cuda"
    assert written(start(tmp_path, 16, other)).computation == other
    assert f"computing in {other}, " in (out := capsys.readouterr().out)
    assert f"earlier starts computed in {FLOAT32}: " in out


def test_targets_are_written_into_the_run(tmp_path: Path) -> None:
    run = start(tmp_path, 0)
    run.write_targets(["127.0.0.1:9170"])
    assert json.loads(run.store.get("targets.json"))[0]["targets"] == ["127.0.0.1:9170"]


def test_ranks_other_than_0_write_nothing(tmp_path: Path) -> None:
    run = ReadOnlyRun(str(tmp_path / "run"))
    run.resume(0, batch_size=8, computation=FLOAT32)
    run.record_progress(8, preemption_notice=True)
    run.add_metrics({"images_seen": 8})
    run.save(8, {"a": b"1"}, 25.0)
    run.write_targets(["127.0.0.1:9170"])
    run.write_sample(8, *(np.zeros((4, 4, 3), np.uint8) for _ in range(3)))
    run.close()
    assert not list(tmp_path.iterdir())
    assert run.state() == {}
