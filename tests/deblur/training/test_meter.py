"""Meter and its metrics, against sums made by hand."""

import math
import types
from collections.abc import Iterator

import pytest
import torch

from cluster.exporter import Metrics
from cluster.sync import Rank, Sync
from deblur.training import meter as meter_module
from deblur.training import metrics as metrics_module
from deblur.training.meter import PARTS, Meter, progress
from deblur.training.metrics import TABLE, run_metrics
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
        meter_module, "time", types.SimpleNamespace(perf_counter=clock.perf_counter, time=lambda: 1000 + clock.now)
    )
    return clock


def a_meter(rank: int = 0, state: dict[str, float] | None = None) -> tuple[Meter, Metrics]:
    """A meter that starts at image 8 with 4 images per update, and its metrics."""
    metrics = run_metrics("run", str(rank))
    counters = {"read_bytes": 10, "bad_samples": 1}
    return Meter(Rank(rank=rank), 8, 4, lambda: dict(counters), lambda: dict(state or {}), metrics), metrics


def scraped(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """What a scrape finds: values by name, and by the labels beside run and rank."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = tuple(value for name, value in sample.labels.items() if name not in ("run", "rank"))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


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


def test_skipped_updates_are_counted_and_excluded_from_the_means() -> None:
    meter, metrics = a_meter()
    meter.add(terms(content=1.0))
    meter.add(terms(content=math.nan, nonfinite=1.0))
    meter.add(terms(content=math.inf, nonfinite=1.0))
    assert meter.nonfinite_in_a_row() == 2
    report = meter.report(20, Sync(), {})
    assert (report["content"], report["nonfinite"]) == (1.0, 2.0)
    assert scraped(metrics)["deblur_nonfinite_updates_total"] == {(): 2.0}
    meter.add(terms(content=1.0))
    assert meter.nonfinite_in_a_row() == 0


def test_time_is_split_into_parts(clock: Clock) -> None:
    def batches() -> Iterator[int]:
        for seconds in (1.0, 2.0):
            clock.now += seconds
            yield 0

    meter, metrics = a_meter()
    for _ in meter.timed(batches()):
        for part, seconds in (("generator", 3.0), ("critic", 5.0), ("generator", 0.5)):
            clock.now += seconds
            meter.on_phase_end(part)
        meter.add(terms())
    clock.now += 7
    meter.mark("validation")
    clock.now += 2
    meter.mark("sync")
    spent = {"data": 3.0, "generator": 7.0, "critic": 10.0, "validation": 7.0, "sync": 2.0}
    assert scraped(metrics)["deblur_update_seconds_total"] == {(part,): seconds for part, seconds in spent.items()}

    report = meter.report(16, Sync(), {})
    total = sum(spent.values())
    assert {part: report[f"{part}_share"] for part in PARTS} == pytest.approx({p: s / total for p, s in spent.items()})
    assert report["images_per_second"] == pytest.approx(8 / (total - 7)), "validation is not training"
    assert report["time"] == 1000 + clock.now

    clock.now += 4
    meter.mark("sync")
    assert meter.report(16, Sync(), {})["sync_share"] == 1.0, "each interval is measured by itself"


def test_a_scrape_has_the_values_of_the_newest_report() -> None:
    meter, metrics = a_meter(state={"restarts": 3, "checkpoint_bytes": 5})
    for _ in range(3):
        meter.add(terms(content=1.5, generator_gradient_norm=2.0, sharp_score=1.0))
    more = {"validation_psnr": 25.0, "validation_blurred_psnr": 24.0, "epoch": 2, "images_wanted": 100}
    report = meter.report(20, Sync(), more | {"generator_lr": 1e-4})
    assert scraped(metrics)["deblur_images_total"] == {(): 12}
    assert scraped(metrics)["deblur_updates_total"] == {(): 3}
    assert scraped(metrics)["deblur_images_seen"] == {(): 20}
    assert scraped(metrics)["deblur_loss"][("content",)] == report["content"] == 1.5
    assert scraped(metrics)["deblur_critic_score"] == {("sharp",): 1.0, ("restored",): 0.0}
    assert scraped(metrics)["deblur_gradient_norm"][("generator",)] == 2.0
    assert scraped(metrics)["deblur_learning_rate"] == {("generator",): 1e-4}
    assert scraped(metrics)["deblur_validation_psnr_decibels"] == {("restored",): 25.0, ("blurred",): 24.0}
    assert (report["restarts"], report["checkpoint_bytes"], report["read_bytes"]) == (3, 5, 10)


def test_a_scrape_reads_the_counters_and_the_state_of_the_run() -> None:
    _, metrics = a_meter(state={"restarts": 2, "checkpoint_bytes": 9})
    assert scraped(metrics)["deblur_read_bytes_total"] == {(): 10}
    assert scraped(metrics)["deblur_restarts_total"] == {(): 2}
    assert scraped(metrics)["deblur_checkpoint_bytes"] == {(): 9}


def test_other_ranks_export_only_their_own_metrics() -> None:
    meter, metrics = a_meter(rank=1)
    meter.add(terms(content=1.0))
    meter.report(16, Sync(), {"epoch": 1})
    pulled = {"deblur_read_bytes_total", "deblur_bad_samples_total"}
    assert scraped(metrics).keys() == pulled | {"deblur_images_total", "deblur_updates_total"}


def test_every_series_of_a_report_is_in_the_table() -> None:
    labels = {metric.name: metric.labels for metric in TABLE}
    for name, *values in metrics_module._SERIES.values():
        assert len(labels[name]) == len(values), name
    assert len({metric.name for metric in TABLE}) == len(TABLE)


@pytest.mark.gpu
def test_phases_on_a_gpu_are_measured_in_gpu_time() -> None:
    metrics = run_metrics("run", "0")
    device = torch.device("cuda")
    meter = Meter(Rank(device=device), 0, 1, dict, dict, metrics)
    a = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    meter.on_phase_end("")
    start.record()
    for _ in range(50):
        a = a @ a / 64
    end.record()
    meter.on_phase_end("critic")
    meter.add(torch.zeros(len(TERMS), device=device))
    meter.nonfinite_in_a_row()
    spent = scraped(metrics)["deblur_update_seconds_total"][("critic",)]
    assert spent == pytest.approx(start.elapsed_time(end) / 1000, rel=0.2)
    assert "device_memory_peak_bytes" in meter.report(1, Sync(), {})


def test_the_progress_line_has_progress_and_quality() -> None:
    metrics = {"images_seen": 600, "images_per_second": 10.0, "epoch": 2, "content": 0.5, "pixel": 0.25}
    metrics |= {"adversarial": 1.0, "wasserstein": 2.0, "penalty": 0.125}
    quality = {"validation_psnr": 26.5, "validation_blurred_psnr": 24.25}
    quality |= {"validation_ssim": 0.9, "validation_blurred_ssim": 0.8}
    assert "600/1,200 images" in progress(metrics, 1200)
    assert progress(metrics, 1200).endswith("0:01:00 left")
    assert "validation 26.50 dB (blurred 24.25), SSIM 0.9000 (0.8000)" in progress(metrics | quality, 1200)
