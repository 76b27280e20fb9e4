"""What a rank measures of itself between two reports, and the line that people read."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from cluster.exporter import Metrics
from cluster.storage import Traffic
from cluster.sync import Rank, Sync
from deblur.data.loader import BadSamples
from deblur.training.metrics import LOSSES, full_names, publish
from deblur.training.update import TERMS

PARTS = ("data", "critic", "generator", "validation", "sync")  # of the time of a run
_SECONDS = "deblur_update_seconds_total"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Counters:
    """What a rank has counted since it started; reports sum it over ranks."""

    traffic: Traffic
    bad: BadSamples

    def __call__(self) -> dict[str, int]:
        return {
            "read_bytes": self.traffic.read_bytes,
            "storage_retries": self.traffic.retries,
            "resumed_reads": self.traffic.resumed_reads,
            "bad_samples": self.bad.count,
        }


class Meter:
    """Measures a rank: sums the terms of updates on the device, and takes the time of its parts.

    What lies on the device is read at sync points only, never per update.
    """

    def __init__(
        self,
        rank: Rank,
        images_seen: int,
        images_per_update: int,
        counters: Callable[[], dict[str, int]],
        state: Callable[[], dict[str, float]],
        metrics: Metrics,
    ) -> None:
        """Keeps `metrics` up to date; each scrape also reads the counters of the rank and the state of the run.

        images_per_update  of this rank
        counters           since it started; a report has their sums over ranks
        state              of the run; empty except on rank 0
        """
        self._rank, self._images_seen, self._images_per_update = rank, images_seen, images_per_update
        self._counters, self._state, self._metrics = counters, state, metrics
        metrics.pull = lambda: full_names(counters() | state())
        if rank.rank == 0:
            metrics.set("deblur_images_seen", images_seen)
            metrics.set("deblur_ranks_present", rank.num_ranks)
            metrics.add("deblur_nonfinite_updates_total", 0)
        self._sums = torch.zeros(len(TERMS), device=rank.device)
        self._in_a_row = torch.zeros((), device=rank.device)
        self._skipped_alone = torch.tensor([float(term == "nonfinite") for term in TERMS], device=rank.device)
        self._updates, self._spent = 0, dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._since = self._marked = time.perf_counter()

    def timed(self, stream: Iterable[_T]) -> Iterator[_T]:
        """The same items; the time spent waiting for them counts as "data"."""
        self.mark()
        for item in stream:
            self._has_data()
            yield item
            self.mark()  # on a GPU the host is far ahead

    def _has_data(self) -> None:
        """A GPU waits for data from its last update to this event; after a sync point the host knows better."""
        if self._rank.device.type == "cuda" and not self._events:
            self.mark("data")
            self.on_phase_end("")
        else:
            self.on_phase_end("data")

    def mark(self, part: str = "") -> None:
        """The time since the last mark was spent on a part; without a name, on none."""
        now = time.perf_counter()
        if part:
            self._add_seconds(part, now - self._marked)
        self._marked = now

    def _add_seconds(self, part: str, seconds: float) -> None:
        self._spent[part] += seconds
        self._metrics.add(_SECONDS, seconds, part)

    def on_phase_end(self, part: str) -> None:
        """Marks a part that the device works on, without waiting for it."""
        if self._rank.device.type != "cuda":
            return self.mark(part)
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((part, event))
        return None

    def add(self, terms: Tensor) -> None:
        """Adds what `Updater.update` returned, without waiting for it."""
        nonfinite = terms[TERMS.index("nonfinite")]
        self._in_a_row = (self._in_a_row + nonfinite) * nonfinite
        # The terms of a skipped update are NaN and would spoil the whole interval.
        self._sums += torch.where(nonfinite.bool(), self._skipped_alone, terms)
        self._updates += 1
        self._metrics.add("deblur_images_total", self._images_per_update)
        self._metrics.add("deblur_updates_total", 1)

    def nonfinite_in_a_row(self) -> int:
        """How many updates in a row were skipped up to now; equal on all ranks. Waits for the device."""
        in_a_row = int(self._in_a_row.item())
        self._read_events()
        self.mark()
        return in_a_row

    def report(self, images_seen: int, sync: Sync, more: dict[str, Any]) -> dict[str, Any]:
        """Means over ranks and the updates since the last report that were not skipped. All ranks must call it.

        `more` is what else the report contains. Rank 0 publishes all of it as metrics.
        """
        now, spent = time.perf_counter(), self._spent
        elapsed = now - self._since
        report: dict[str, Any] = {
            "time": time.time(),
            "images_seen": images_seen,
            # Throughput of updates: validations are left out.
            "images_per_second": (images_seen - self._images_seen) / (elapsed - spent["validation"]),
            **self._mean_terms(sync),
            **self._over_ranks(sync, {f"{part}_share": s / elapsed for part, s in spent.items()}, mean=True),
            **{name: int(total) for name, total in self._over_ranks(sync, self._counters()).items()},
            "ranks": self._rank.num_ranks,
            **self._state(),
            **self._device_memory(),
            **more,
        }
        self._sums = torch.zeros_like(self._sums)
        self._updates, self._spent = 0, dict.fromkeys(PARTS, 0.0)
        self._since, self._images_seen = now, images_seen
        if self._rank.rank == 0:
            publish(self._metrics, report)
        return report

    def _mean_terms(self, sync: Sync) -> dict[str, float]:
        sums = dict(zip(TERMS, sync.sum(self._sums / self._rank.num_ranks).tolist(), strict=True))
        counted = max(1.0, self._updates - sums["nonfinite"])
        terms = {term: total if term == "nonfinite" else total / counted for term, total in sums.items()}
        return {"wasserstein": terms["sharp_score"] - terms["restored_score"], **terms}

    def _over_ranks(self, sync: Sync, values: Mapping[str, float], mean: bool = False) -> dict[str, float]:
        sums = sync.sum(torch.tensor(list(values.values()), dtype=torch.float64, device=self._rank.device))
        return dict(zip(values, (sums / self._rank.num_ranks if mean else sums).tolist(), strict=True))

    def _device_memory(self) -> dict[str, int]:
        if self._rank.device.type != "cuda":
            return {}
        memory = {
            "peak": torch.cuda.max_memory_allocated(self._rank.device),
            "reserved": torch.cuda.memory_reserved(self._rank.device),
        }
        for kind, size in memory.items():
            self._metrics.set("deblur_device_memory_bytes", size, kind)
        return {f"device_memory_{kind}_bytes": size for kind, size in memory.items()}

    def _read_events(self) -> None:
        """Adds up GPU time; the device must have reached the last event."""
        for (_, before), (part, event) in pairwise(self._events):
            if part:
                self._add_seconds(part, before.elapsed_time(event) / 1000)
        self._events.clear()


def progress(metrics: dict[str, Any], total_images: int) -> str:
    """One line for people."""
    left = (total_images - metrics["images_seen"]) / max(metrics["images_per_second"], 1e-9)
    parts = [
        f"{metrics['images_seen']:,}/{total_images:,} images",
        f"epoch {metrics['epoch']}",
        f"{metrics['images_per_second']:.1f} images/s",
        *(f"{term} {metrics[term]:.4g}" for term in LOSSES if metrics.get(term)),
        f"{_duration(left)} left",
    ]
    if "validation_psnr" in metrics:
        parts.append(
            f"validation {metrics['validation_psnr']:.2f} dB (blurred {metrics['validation_blurred_psnr']:.2f}), "
            f"SSIM {metrics['validation_ssim']:.4f} ({metrics['validation_blurred_ssim']:.4f})"
        )
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
