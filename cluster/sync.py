"""The one meeting point of the ranks.

Between meetings ranks talk only through gradients. At an update agreed at the last meeting, rank 0 looks at its clock
and at the agenda and tells all what is to be done; no other clock decides anything, so no rank waits for a step that
another does not take. This module alone calls `ray.train.report`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Which of the processes this is, and the device it computes on."""

    rank: int = 0
    num_ranks: int = 1
    rank_of_node: int = 0
    ranks_per_node: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all ranks do at a meeting, and after how many updates they meet again."""

    report: bool
    validate: bool
    checkpoint: bool
    stop: bool
    updates_to_next: int


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often things are due: by images where the result should not depend on speed, by time where it is overhead."""

    validate_images: int
    report_s: float = 10.0
    checkpoint_s: float = 60.0
    meeting_s: float = 3.0


class Agenda:
    """Rank 0's decisions. `clock` is in seconds."""

    def __init__(
        self,
        intervals: Intervals,
        *,
        images_seen: int,
        total_images: int,
        batch_size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._intervals, self._total, self._batch, self._clock = intervals, total_images, batch_size, clock
        self._validated = images_seen
        self._met = images_seen
        self._met_at = self._reported_at = self._saved_at = clock()

    def decide(self, images_seen: int) -> Record:
        """What is due after `images_seen` images. A validation is reported and saved with the weights it judged."""
        now, every = self._clock(), self._intervals
        done = images_seen >= self._total
        validate = done or images_seen // every.validate_images > self._validated // every.validate_images
        report = validate or now - self._reported_at >= every.report_s
        checkpoint = validate or now - self._saved_at >= every.checkpoint_s
        seconds_per_update = (now - self._met_at) / max(1, (images_seen - self._met) // self._batch)
        if validate:
            self._validated = images_seen
        if report:
            self._reported_at = now
        if checkpoint:
            self._saved_at = now
        self._met, self._met_at = images_seen, now
        return Record(
            report=report,
            validate=validate,
            checkpoint=checkpoint,
            stop=done,
            updates_to_next=self._updates_to_next(images_seen, seconds_per_update),
        )

    def _updates_to_next(self, images_seen: int, seconds_per_update: float) -> int:
        """As many as fit into the meeting interval, but none past the next validation or the end."""
        every = self._intervals.validate_images
        due = min((images_seen // every + 1) * every, self._total)
        to_due = -(-(due - images_seen) // self._batch)
        by_time = int(self._intervals.meeting_s / max(seconds_per_update, 1e-9))
        return max(1, min(to_due, by_time))


class Sync:
    """What ranks say to each other outside of gradients. With one rank and no process group all of it is local."""

    def __init__(self, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._report = report
        self._alone = not (dist.is_available() and dist.is_initialized())

    def meet(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns on rank 0, on every rank. All ranks must call it at the same update."""
        if self._alone:
            return decide()
        record = [decide() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(record, src=0)
        return record[0]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank."""
        if not self._alone:
            dist.all_reduce(values)
        return values

    def copy_from_first(self, tensors: list[torch.Tensor]) -> None:
        """Overwrites the tensors with those of rank 0."""
        for tensor in [] if self._alone else tensors:
            dist.broadcast(tensor, src=0)

    def report(self, metrics: dict[str, Any]) -> None:
        """Hands a report to whoever started the ranks. All ranks must call it the same number of times."""
        if self._report:
            self._report(metrics)


def ray_sync() -> Sync:
    """The meeting point of a worker of Ray Train."""
    import ray.train  # a machine without Ray can train one rank

    return Sync(report=ray.train.report)
