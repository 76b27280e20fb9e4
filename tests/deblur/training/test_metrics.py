"""What a run tells of itself, against sums made by hand."""

import math
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cluster.sync import Rank, Sync
from deblur.training import metrics as telemetry
from deblur.training.metrics import PARTS, TABLE, Meter, numbers_of, progress
from deblur.training.update import TERMS


class Clock:
    """Stands where it is put."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(
        telemetry, "time", types.SimpleNamespace(perf_counter=clock.perf_counter, time=lambda: 1000 + clock.now)
    )
    return clock


def a_meter(
    rank: int = 0, state: dict[str, float] | None = None
) -> tuple[Meter, dict[str, dict[tuple[str, ...], Any]]]:
    """A meter from image 8 on with 4 images per update, and the values it keeps up to date."""
    numbers = numbers_of("run", str(rank))
    counters = {"read_bytes": 10, "bad_samples": 1}
    meter = Meter(Rank(rank=rank), 8, 4, lambda: dict(counters), lambda: dict(state or {}), numbers)
    return meter, numbers._values


def terms(**values: float) -> torch.Tensor:
    return torch.tensor([values.get(term, 0.0) for term in TERMS])


def test_a_report_has_the_means_of_its_own_interval() -> None:
    meter, _ = a_meter()
    meter.add(terms(content=1.0, sharp_score=5.0, restored_score=2.0))
    meter.add(terms(content=3.0, sharp_score=7.0, restored_score=2.0))
    first = meter.report(16, Sync(), {})
    assert (first["content"], first["wasserstein"], first["nonfinite"]) == (2.0, 4.0, 0.0)
    meter.add(terms(content=10.0))
    assert meter.report(20, Sync(), {})["content"] == 10.0


def test_updates_that_were_skipped_are_counted_and_left_out_of_the_means() -> None:
    meter, values = a_meter()
    meter.add(terms(content=1.0))
    meter.add(terms(content=math.nan, nonfinite=1.0))
    meter.add(terms(content=math.inf, nonfinite=1.0))
    assert meter.nonfinite_in_a_row() == 2
    metrics = meter.report(20, Sync(), {})
    assert (metrics["content"], metrics["nonfinite"]) == (1.0, 2.0)
    assert values["deblur_nonfinite_updates_total"] == {(): 2.0}
    meter.add(terms(content=1.0))
    assert meter.nonfinite_in_a_row() == 0


def test_time_is_shared_out_among_the_parts(clock: Clock) -> None:
    def batches() -> Iterator[int]:
        for seconds in (1.0, 2.0):
            clock.now += seconds
            yield 0

    meter, values = a_meter()
    for _ in meter.timed(batches()):
        for part, seconds in (("generator", 3.0), ("critic", 5.0), ("generator", 0.5)):
            clock.now += seconds
            meter.lap(part)
        meter.add(terms())
    clock.now += 7
    meter.mark("validation")
    clock.now += 2
    meter.mark("meeting")
    spent = {"data": 3.0, "generator": 7.0, "critic": 10.0, "validation": 7.0, "meeting": 2.0}
    assert values["deblur_update_seconds_total"] == {(part,): seconds for part, seconds in spent.items()}

    metrics = meter.report(16, Sync(), {})
    total = sum(spent.values())
    assert {part: metrics[f"{part}_share"] for part in PARTS} == pytest.approx({p: s / total for p, s in spent.items()})
    assert metrics["images_per_second"] == pytest.approx(8 / (total - 7)), "a validation is no training"
    assert metrics["time"] == 1000 + clock.now

    clock.now += 4
    meter.mark("meeting")
    assert meter.report(16, Sync(), {})["meeting_share"] == 1.0, "the next interval stands for itself"


def test_what_is_scraped_are_the_numbers_of_the_report() -> None:
    meter, values = a_meter(state={"restarts": 3, "checkpoint_bytes": 5})
    for _ in range(3):
        meter.add(terms(content=1.5, generator_gradient_norm=2.0, sharp_score=1.0))
    more = {"validation_psnr": 25.0, "validation_blurred_psnr": 24.0, "epoch": 2, "images_wanted": 100}
    metrics = meter.report(20, Sync(), more | {"generator_lr": 1e-4})
    assert values["deblur_images_total"] == {(): 12}
    assert values["deblur_updates_total"] == {(): 3}
    assert values["deblur_images_seen"] == {(): 20}
    assert values["deblur_loss"][("content",)] == metrics["content"] == 1.5
    assert values["deblur_critic_score"] == {("sharp",): 1.0, ("restored",): 0.0}
    assert values["deblur_gradient_norm"][("generator",)] == 2.0
    assert values["deblur_learning_rate"] == {("generator",): 1e-4}
    assert values["deblur_validation_psnr_decibels"] == {("restored",): 25.0, ("blurred",): 24.0}
    assert (metrics["restarts"], metrics["checkpoint_bytes"], metrics["read_bytes"]) == (3, 5, 10)


def test_a_scrape_asks_for_counters_and_for_the_state_of_the_run() -> None:
    numbers = numbers_of("run", "0")
    Meter(Rank(), 0, 1, lambda: {"read_bytes": 7}, lambda: {"restarts": 2, "checkpoint_bytes": 9}, numbers)
    found = {sample.name: sample.value for family in numbers.collect() for sample in family.samples}
    assert found["deblur_read_bytes_total"] == 7
    assert found["deblur_restarts_total"] == 2
    assert found["deblur_checkpoint_bytes"] == 9


def test_other_ranks_tell_of_themselves_alone() -> None:
    meter, values = a_meter(rank=1)
    meter.add(terms(content=1.0))
    meter.report(16, Sync(), {"epoch": 1})
    assert {name for name, series in values.items() if series} == {"deblur_images_total", "deblur_updates_total"}


def test_every_series_of_a_report_is_declared() -> None:
    labels = {metric.name: metric.labels for metric in TABLE}
    for name, *values in telemetry._SERIES.values():
        assert len(labels[name]) == len(values), name
    assert len({metric.name for metric in TABLE}) == len(TABLE)


@pytest.mark.gpu
def test_laps_on_a_gpu_are_its_own_time() -> None:
    numbers = numbers_of("run", "0")
    device = torch.device("cuda")
    meter = Meter(Rank(device=device), 0, 1, dict, dict, numbers)
    a = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    meter.lap("")
    start.record()
    for _ in range(50):
        a = a @ a / 64
    end.record()
    meter.lap("critic")
    meter.add(torch.zeros(len(TERMS), device=device))
    meter.nonfinite_in_a_row()
    spent = numbers.get("deblur_update_seconds_total", "critic")
    assert spent == pytest.approx(start.elapsed_time(end) / 1000, rel=0.2)
    assert "device_memory_peak_bytes" in meter.report(1, Sync(), {})


def test_the_line_for_people_says_how_far_and_how_good() -> None:
    metrics = {"images_seen": 600, "images_per_second": 10.0, "epoch": 2, "content": 0.5, "pixel": 0.25}
    metrics |= {"adversarial": 1.0, "wasserstein": 2.0, "penalty": 0.125}
    quality = {"validation_psnr": 26.5, "validation_blurred_psnr": 24.25}
    quality |= {"validation_ssim": 0.9, "validation_blurred_ssim": 0.8}
    assert "600/1,200 images" in progress("x", metrics, 1200)
    assert progress("x", metrics, 1200).endswith("0:01:00 left")
    assert "validation 26.50 dB (blurred 24.25), SSIM 0.9000 (0.8000)" in progress("x", metrics | quality, 1200)
