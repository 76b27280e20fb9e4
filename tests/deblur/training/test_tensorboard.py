"""Event files of a run, read back by TensorBoard's own reader."""

import errno
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.event_file_writer import EventsWriter

from cluster.storage import open_store
from deblur.training.run import Run
from deblur.training.tensorboard import FOLDER, TensorBoard


def start(runs: Path, images_seen: int) -> Run:
    run = Run(str(runs / "run"))
    run.resume(images_seen, batch_size=8, computation="float32, on cpu")
    return run


def report(run: Run, images_seen: int, **more: float) -> None:
    run.add_metrics({"images_seen": images_seen, "pixel": 1 / images_seen, "ranks": 2, **more})


def read(runs: Path) -> EventAccumulator:
    events = EventAccumulator(str(runs / "run" / FOLDER), size_guidance={"images": 0})
    events.Reload()
    return events


def test_it_has_the_numbers_of_metrics_jsonl_and_the_samples(tmp_path: Path) -> None:
    run = start(tmp_path, 0)
    report(run, 8, validation_psnr=30.5)
    report(run, 16, generator_gradient_norm=float("nan"))
    run.save(16, {"a": b"1"}, None)
    run.write_sample(16, *(np.full((4, 5, 3), level, np.uint8) for level in (0, 100, 200)))
    run.close()
    events = read(tmp_path)
    read_back = {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}
    expected: dict[str, dict[int, float]] = {}
    for line in run.read_metrics():
        for name, value in line.items():
            if value is not None:
                expected.setdefault(name, {})[line["images_seen"]] = pytest.approx(value)
    assert read_back == expected
    (sample,) = events.Images("sample")
    assert (sample.step, sample.width, sample.height) == (16, 15, 4)


def test_what_was_lost_in_a_restart_is_hidden(tmp_path: Path) -> None:
    run = start(tmp_path, 0)
    for images_seen in (8, 16, 24):
        report(run, images_seen)
    run.close()
    again = start(tmp_path, 8)
    report(again, 16)
    again.close()
    assert [event.step for event in read(tmp_path).Scalars("pixel")] == [8, 16]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "TensorBoard" in line]


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_store(str(tmp_path / "run")).put(FOLDER, b"a file where the folder belongs")
    run = start(tmp_path, 0)
    report(run, 8)
    run.close()
    assert len(warnings_of(caplog)) == 1


def test_a_disk_that_fills_up_ends_the_record_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, 0)
    report(run, 8)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventsWriter, "write_event", full)
    for images_seen in range(16, 400, 8):  # more than a queue might hold
        report(run, images_seen)
    run.close()
    assert warnings_of(caplog) == ["no more events for TensorBoard: [Errno 28] No space left on device"]
    assert [event.step for event in read(tmp_path).Scalars("pixel")] == [8]


def test_a_bucket_has_none(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    opened: list[object] = []
    monkeypatch.setattr(EventsWriter, "__init__", lambda *args: opened.append(args))
    board = TensorBoard(open_store("s3://bucket/run"), 0)
    board.add_report({"images_seen": 8, "pixel": 0.5})
    board.close()
    assert not opened
    assert not warnings_of(caplog)
