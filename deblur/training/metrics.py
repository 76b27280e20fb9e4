"""What a run tells of itself: the table of metrics, means over a report interval, and the line a person reads."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from cluster.exporter import Declared, Numbers
from cluster.sync import Rank, Sync
from deblur.training.update import TERMS

_T = TypeVar("_T")

# What Prometheus is told. All series have the labels run and rank; the driver's own say rank="driver".
TABLE = (
    # By each rank, of itself.
    Declared("deblur_images_total", "counter", "Images that this rank has trained on since it started."),
    Declared("deblur_updates_total", "counter", "Updates that this rank has taken part in since it started."),
    Declared(
        "deblur_update_seconds_total",
        "counter",
        "Where this rank's time went: data (waiting for a batch), critic, generator, validation, meeting (agreeing, "
        "reporting, handing a checkpoint over). On a GPU data, critic and generator are its own time.",
        ("part",),
    ),
    Declared("deblur_read_bytes_total", "counter", "Bytes of the dataset that this rank has fetched from storage."),
    Declared("deblur_storage_retries_total", "counter", "Requests for the dataset that had to be made again."),
    Declared("deblur_resumed_reads_total", "counter", "Reads of the dataset that went on after a cut."),
    Declared("deblur_bad_samples_total", "counter", "Samples that did not decode and were replaced."),
    Declared(
        "deblur_device_memory_bytes",
        "gauge",
        "GPU memory of this rank: peak (the most that was allocated so far), reserved.",
        ("kind",),
    ),
    # By the first rank, of the run.
    Declared("deblur_images_seen", "gauge", "How far the training is, in images of all ranks."),
    Declared("deblur_images_wanted", "gauge", "Images of the whole run."),
    Declared("deblur_epoch", "gauge", "Whole epochs seen."),
    Declared(
        "deblur_loss",
        "gauge",
        "Mean over the last report interval, unweighted: content, pixel, adversarial, penalty, and wasserstein, "
        "the critic's estimate.",
        ("term",),
    ),
    Declared(
        "deblur_critic_score",
        "gauge",
        "Mean score that the critic gives to sharp and to restored pictures.",
        ("picture",),
    ),
    Declared(
        "deblur_gradient_norm",
        "gauge",
        "Mean norm of the whole gradient of the generator and the critic.",
        ("network",),
    ),
    Declared("deblur_learning_rate", "gauge", "Of the generator and the critic.", ("network",)),
    Declared(
        "deblur_nonfinite_updates_total",
        "counter",
        "Updates skipped since the start because gradients were not finite.",
    ),
    Declared(
        "deblur_validation_psnr_decibels",
        "gauge",
        "PSNR of the validation split: restored, and blurred as it came.",
        ("picture",),
    ),
    Declared("deblur_validation_ssim", "gauge", "SSIM of the validation split, likewise.", ("picture",)),
    Declared("deblur_checkpoints_total", "counter", "Checkpoints committed since the start."),
    Declared(
        "deblur_checkpoint_failures_total", "counter", "Checkpoints that could not be uploaded, or were found damaged."
    ),
    Declared("deblur_checkpoint_timestamp_seconds", "gauge", "When the newest checkpoint was committed, in Unix time."),
    Declared("deblur_checkpoint_upload_seconds", "gauge", "How long the last upload took."),
    Declared("deblur_checkpoint_bytes", "gauge", "Size of the last checkpoint."),
    Declared("deblur_restarts_total", "counter", "Starts of the run after its first, over its whole life."),
    Declared(
        "deblur_updates_lost_total",
        "counter",
        "Updates that had to be made again, over the run's whole life; while storage answers, all but those of the "
        "last 3 s before each loss.",
    ),
    Declared(
        "deblur_preemption_notices_total",
        "counter",
        "Notices that a node is going to be taken, over the run's whole life.",
    ),
    Declared("deblur_ranks_present", "gauge", "Ranks that train now."),
    Declared("deblur_trial", "gauge", "1 of a trial of a search, which the search may end early; else 0."),
    # By the driver.
    Declared("deblur_ranks_wanted", "gauge", "Ranks of --nodes; what --min-nodes permits is below."),
)

# Which number of a report is which series.
_SERIES: dict[str, tuple[str, ...]] = {
    "images_seen": ("deblur_images_seen",),
    "images_wanted": ("deblur_images_wanted",),
    "epoch": ("deblur_epoch",),
    **{term: ("deblur_loss", term) for term in ("content", "pixel", "adversarial", "penalty", "wasserstein")},
    **{f"{picture}_score": ("deblur_critic_score", picture) for picture in ("sharp", "restored")},
    **{f"{network}_gradient_norm": ("deblur_gradient_norm", network) for network in ("generator", "critic")},
    **{f"{network}_lr": ("deblur_learning_rate", network) for network in ("generator", "critic")},
    "validation_psnr": ("deblur_validation_psnr_decibels", "restored"),
    "validation_blurred_psnr": ("deblur_validation_psnr_decibels", "blurred"),
    "validation_ssim": ("deblur_validation_ssim", "restored"),
    "validation_blurred_ssim": ("deblur_validation_ssim", "blurred"),
}
PARTS = ("data", "critic", "generator", "validation", "meeting")  # of the time of a run
_SECONDS = "deblur_update_seconds_total"


_NAMES = {metric.name for metric in TABLE}


def _name(key: str) -> str:
    """The metric of what a report calls by a shorter name."""
    return name if (name := f"deblur_{key}") in _NAMES else f"{name}_total"


def numbers_of(run: str, rank: str) -> Numbers:
    """The metrics of one rank of a run, or of its driver."""
    return Numbers(TABLE, {"run": run, "rank": rank})


class Meter:
    """Measures a rank: sums the terms of updates on the device, and takes the time of its parts.

    What lies on the device is read at meetings alone, never per update.
    """

    def __init__(
        self,
        rank: Rank,
        images_seen: int,
        images_per_update: int,
        counters: Callable[[], dict[str, int]],
        state: Callable[[], dict[str, float]],
        numbers: Numbers,
    ) -> None:
        """Sets `numbers`, whose scrapes also ask for what the rank counts and for the state of the run.

        images_per_update  of this rank
        counters           since its start; a report has their sums over ranks
        state              of the run; empty but on the first rank
        """
        self._rank, self._images_seen, self._images_per_update = rank, images_seen, images_per_update
        self._counters, self._state, self._numbers = counters, state, numbers
        numbers.live = lambda: {_name(key): value for key, value in (counters() | state()).items()}
        if rank.rank == 0:
            numbers.set("deblur_images_seen", images_seen)
            numbers.set("deblur_ranks_present", rank.num_ranks)
            numbers.set("deblur_nonfinite_updates_total", 0)
        self._sums = torch.zeros(len(TERMS), device=rank.device)
        self._in_a_row = torch.zeros((), device=rank.device)
        self._skipped_alone = torch.tensor([float(term == "nonfinite") for term in TERMS], device=rank.device)
        self._updates, self._reported = 0, dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._since = self._marked = time.perf_counter()

    def timed(self, stream: Iterable[_T]) -> Iterator[_T]:
        """The same items; what the wait for them takes is counted."""
        self.mark()
        for item in stream:
            self._has_data()
            yield item
            self.mark()  # on a GPU the host was done long ago

    def _has_data(self) -> None:
        """A GPU waits for data from the end of its last update to this event; after a meeting the host knows better."""
        if self._rank.device.type == "cuda" and not self._events:
            self.mark("data")
            self.lap("")
        else:
            self.lap("data")

    def mark(self, part: str = "") -> None:
        """The time since the last mark was spent on a part; without a name, on none."""
        now = time.perf_counter()
        if part:
            self._numbers.add(_SECONDS, now - self._marked, part)
        self._marked = now

    def lap(self, part: str) -> None:
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
        # One update whose terms are no numbers would leave the interval without any.
        self._sums += torch.where(nonfinite.bool(), self._skipped_alone, terms)
        self._updates += 1
        self._numbers.add("deblur_images_total", self._images_per_update)
        self._numbers.add("deblur_updates_total", 1)

    def nonfinite_in_a_row(self) -> int:
        """How many of the last updates were skipped, on all ranks alike. Waits for the device."""
        in_a_row = int(self._in_a_row.item())
        self._read_events()
        self.mark()
        return in_a_row

    def report(self, images_seen: int, sync: Sync, more: dict[str, Any]) -> dict[str, Any]:
        """Means over ranks and the updates since the last report that were not skipped. All ranks must call it.

        `more` is what else the run knows of itself now. The first rank's numbers are set from all of it.
        """
        parts = {part: self._numbers.get(_SECONDS, part) for part in PARTS}
        spent = {part: parts[part] - self._reported[part] for part in PARTS}
        now = time.perf_counter()
        metrics: dict[str, Any] = {
            "time": time.time(),
            "images_seen": images_seen,
            # Images per second are those of updates.
            "images_per_second": (images_seen - self._images_seen) / (now - self._since - spent["validation"]),
            **self._mean_terms(sync),
            **self._over_ranks(
                sync, {f"{part}_share": s / (now - self._since) for part, s in spent.items()}, mean=True
            ),
            **{name: int(total) for name, total in self._over_ranks(sync, self._counters()).items()},
            "ranks": self._rank.num_ranks,
            **self._state(),
            **self._device_memory(),
            **more,
        }
        self._sums = torch.zeros_like(self._sums)
        self._updates, self._reported, self._since, self._images_seen = 0, parts, now, images_seen
        if self._rank.rank == 0:
            self._publish(metrics)
        return metrics

    def _mean_terms(self, sync: Sync) -> dict[str, float]:
        sums = dict(zip(TERMS, sync.sum(self._sums / self._rank.num_ranks).tolist(), strict=True))
        counted = max(1.0, self._updates - sums["nonfinite"])
        terms = {term: total if term == "nonfinite" else total / counted for term, total in sums.items()}
        return {"wasserstein": terms["sharp_score"] - terms["restored_score"], **terms}

    def _over_ranks(self, sync: Sync, values: dict[str, float], mean: bool = False) -> dict[str, float]:
        sums = sync.sum(torch.tensor(list(values.values()), dtype=torch.float64, device=self._rank.device))
        return dict(zip(values, (sums / self._rank.num_ranks if mean else sums).tolist(), strict=True))

    def _publish(self, metrics: dict[str, Any]) -> None:
        for key, series in _SERIES.items():
            if key in metrics:
                self._numbers.set(series[0], metrics[key], *series[1:])
        self._numbers.add("deblur_nonfinite_updates_total", metrics["nonfinite"])

    def _device_memory(self) -> dict[str, int]:
        if self._rank.device.type != "cuda":
            return {}
        memory = {
            "peak": torch.cuda.max_memory_allocated(self._rank.device),
            "reserved": torch.cuda.memory_reserved(self._rank.device),
        }
        for kind, size in memory.items():
            self._numbers.set("deblur_device_memory_bytes", size, kind)
        return {f"device_memory_{kind}_bytes": size for kind, size in memory.items()}

    def _read_events(self) -> None:
        """Adds up the device's time; it must have reached the last event."""
        for (_, before), (part, event) in pairwise(self._events):
            if part:
                self._numbers.add(_SECONDS, before.elapsed_time(event) / 1000, part)
        self._events.clear()


def progress(name: str, metrics: dict[str, Any], total_images: int) -> str:
    """One line for people."""
    left = (total_images - metrics["images_seen"]) / max(metrics["images_per_second"], 1e-9)
    parts = [
        f"{name}: {metrics['images_seen']:,}/{total_images:,} images",
        f"epoch {metrics['epoch']}",
        f"{metrics['images_per_second']:.1f} images/s",
        *(f"{term} {metrics[term]:.4g}" for term in ("content", "pixel", "adversarial", "wasserstein", "penalty")),
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
