"""The one meeting point of the ranks.

Between meetings ranks talk only through gradients. At an update agreed at the last meeting, rank 0 looks at its clock
and at the agenda and tells all what is to be done; no other clock decides anything, so no rank waits for a step that
another does not take. This module alone calls `ray.train.report` and `get_preemption_info`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

LEAVE_S = 5.0  # between a last checkpoint and the end of its node
COLLECTIVE_TIMEOUT_S = 600  # a rank that does not come within it counts as dead


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Which of the processes this is, and the device it computes on."""

    rank: int = 0
    num_ranks: int = 1
    rank_of_node: int = 0
    ranks_per_node: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: str = "127.0.0.1"
    """Where others reach this machine."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What all ranks do at a meeting, and after how many updates they meet again."""

    report: bool
    validate: bool
    checkpoint: bool
    stop: bool
    """The work is done."""
    leave: str
    """Why the ranks end before it is, to be started again from this checkpoint; empty where they go on."""
    notice: bool
    """Whether it was heard just now that a node is going to be taken away."""
    updates_to_next: int


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often things are due: by images where the result should not depend on speed, by time where it is overhead."""

    validate_images: int
    report_s: float = 10.0
    checkpoint_s: float = 60.0
    sync_s: float = 3.0


@dataclass(frozen=True)
class ClusterState:
    """What rank 0 knows of the time to come."""

    seconds_to_preemption: float | None = None
    """Until a node of this run is taken away; None where none is going to be."""
    upload_s: float = 0.0
    """What the last checkpoint took."""
    uploading: bool = False
    """Whether one is still on its way: the next would wait for it, and training with it."""
    can_scale_up: Callable[[], bool] = lambda: False
    """Whether the cluster has nodes for more ranks; asked only when a checkpoint is due."""


class StepScheduler:
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
        self._warned = False

    def decide(self, images_seen: int, outlook: ClusterState | None = None) -> Record:
        """What is due after `images_seen` images. A validation is reported and saved with the weights it judged.

        On the first notice that a node is taken a checkpoint is due at once, for the notice may be shorter than it
        says; the ranks then train on, and leave with another as late as is safe.
        """
        now, every, outlook = self._clock(), self._intervals, outlook or ClusterState()
        noticed = outlook.seconds_to_preemption is not None
        seconds_per_update = (now - self._met_at) / max(1, (images_seen - self._met) // self._batch)
        done = images_seen >= self._total
        due = images_seen // every.validate_images > self._validated // every.validate_images
        validate = done or (due and not noticed)  # it may take minutes
        report = validate or now - self._reported_at >= every.report_s
        by_time = now - self._saved_at >= every.checkpoint_s and not outlook.uploading
        notice = noticed and not self._warned
        checkpoint = validate or by_time or notice
        leave = "" if done else self._leave(outlook, checkpoint, seconds_per_update)
        checkpoint = checkpoint or bool(leave)
        self._warned = noticed
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
            leave=leave,
            notice=notice,
            updates_to_next=self._updates_to_next(images_seen, seconds_per_update),
        )

    def _leave(self, outlook: ClusterState, checkpoint: bool, seconds_per_update: float) -> str:
        if outlook.seconds_to_preemption is not None:
            # The next meeting must not come too late for a checkpoint, though that one takes twice as long.
            needed = 2 * outlook.upload_s + LEAVE_S + self._intervals.sync_s + seconds_per_update
            return "a node is about to be taken away" if outlook.seconds_to_preemption <= needed else ""
        return "there are nodes for more ranks" if checkpoint and outlook.can_scale_up() else ""

    def _updates_to_next(self, images_seen: int, seconds_per_update: float) -> int:
        """As many as fit into the meeting interval, but none past the next validation or the end."""
        every = self._intervals.validate_images
        due = min((images_seen // every + 1) * every, self._total)
        to_due = -(-(due - images_seen) // self._batch)
        by_time = int(self._intervals.sync_s / max(seconds_per_update, 1e-9))
        return max(1, min(to_due, by_time))


class Sync:
    """What ranks say to each other outside of gradients. With one rank and no process group all of it is local.

    report        takes metrics to whoever started the ranks
    seconds_to_preemption  until a node is taken away, None while none is: the same on all ranks, which must all ask
    can_scale_up  whether the cluster has nodes for more ranks
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None] | None = None,
        seconds_to_preemption: Callable[[], float | None] = lambda: None,
        can_scale_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._report, self.seconds_to_preemption, self.can_scale_up = report, seconds_to_preemption, can_scale_up
        self._alone = not (dist.is_available() and dist.is_initialized())

    def broadcast_from_rank0(self, decide: Callable[[], Any]) -> Any:
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

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks in their order, on every rank."""
        if self._alone:
            return [value]
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, value)
        return found

    def broadcast_tensors(self, tensors: list[torch.Tensor]) -> None:
        """Overwrites the tensors with those of rank 0."""
        for tensor in [] if self._alone else tensors:
            dist.broadcast(tensor, src=0)

    def report(self, metrics: dict[str, Any]) -> None:
        """Hands a report to whoever started the ranks. All ranks must call it the same number of times."""
        if self._report:
            self._report(metrics)
