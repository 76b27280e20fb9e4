"""What a run measures of itself: means over a report interval, and the line a person reads."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from cluster.sync import Rank, Sync
from deblur.update import TERMS

_T = TypeVar("_T")


class Meter:
    """Sums the terms of updates on the device; they are read at meetings alone, never per update."""

    def __init__(self, rank: Rank, images_seen: int, count: Callable[[], dict[str, int]] = dict) -> None:
        """`count` gives this rank's counters since its start; a report has their sums over ranks."""
        self._rank, self._images_seen, self._count = rank, images_seen, count
        self._sums = torch.zeros(len(TERMS), device=rank.device)
        self._in_a_row = torch.zeros((), device=rank.device)
        self._skipped_alone = torch.tensor([float(term == "nonfinite") for term in TERMS], device=rank.device)
        self._updates, self._waited_s, self._since = 0, 0.0, time.monotonic()

    def timed(self, stream: Iterable[_T]) -> Iterator[_T]:
        """The same items; what the wait for them takes is counted."""
        items = iter(stream)
        while True:
            start = time.monotonic()
            item = next(items)
            self._waited_s += time.monotonic() - start
            yield item

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside takes no time: images per second are those of updates."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def add(self, terms: Tensor) -> None:
        """Adds what `Updater.update` returned, without waiting for it."""
        nonfinite = terms[TERMS.index("nonfinite")]
        self._in_a_row = (self._in_a_row + nonfinite) * nonfinite
        # One update whose terms are no numbers would leave the interval without any.
        self._sums += torch.where(nonfinite.bool(), self._skipped_alone, terms)
        self._updates += 1

    def nonfinite_in_a_row(self) -> int:
        """How many of the last updates were skipped, on all ranks alike. Waits for the device."""
        return int(self._in_a_row.item())

    def report(self, images_seen: int, sync: Sync) -> dict[str, Any]:
        """Means over ranks and the updates since the last report that were not skipped. All ranks must call it."""
        seconds = time.monotonic() - self._since
        sums = dict(zip(TERMS, sync.sum(self._sums / self._rank.num_ranks).tolist(), strict=True))
        nonfinite = sums.pop("nonfinite")
        terms = {term: total / max(1.0, self._updates - nonfinite) for term, total in sums.items()}
        counts = self._count()
        totals = sync.sum(torch.tensor(list(counts.values()), dtype=torch.float64, device=self._rank.device))
        metrics = {
            "images_seen": images_seen,
            "images_per_second": (images_seen - self._images_seen) / seconds,
            "data_wait_share": self._waited_s / seconds,
            "wasserstein": terms["sharp_score"] - terms["restored_score"],
            **terms,
            "nonfinite": nonfinite,
            **{name: int(total) for name, total in zip(counts, totals.tolist(), strict=True)},
        }
        self._sums = torch.zeros_like(self._sums)
        self._updates, self._waited_s, self._since, self._images_seen = 0, 0.0, time.monotonic(), images_seen
        return metrics


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
