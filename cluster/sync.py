"""Sync points: the only moments at which ranks agree on anything but gradients.

At an update that the last sync point fixed, rank 0 looks at its clock, decides what is due, and broadcasts that. No
other clock decides anything, so no rank ever waits for a step that another rank does not take.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

PREEMPTION_MARGIN_S = 5.0  # between the last checkpoint and the moment at which its node is preempted
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Which of the workers this process is, and its device."""

    rank: int = 0
    num_ranks: int = 1
    rank_of_node: int = 0
    ranks_per_node: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: str = "127.0.0.1"
    """Address at which other machines reach this one."""


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """How often things are due: in images where results must not depend on speed, in seconds for overhead."""

    validate_images: int
    report_s: float = 10.0
    checkpoint_s: float = 60.0
    sync_s: float = 3.0


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What every rank does at a sync point, and when the next one is."""

    report: bool
    validate: bool
    checkpoint: bool
    finished: bool
    """The last update has been made."""
    restart: str
    """Why the workers stop early, to be restarted from this checkpoint; empty if they continue."""
    preemption_notice: bool
    """Whether this is the first sync point after a preemption notice."""
    updates_to_next_sync: int

    @property
    def stop(self) -> bool:
        """Whether the workers stop here."""
        return self.finished or bool(self.restart)


@dataclass(frozen=True)
class ClusterState:
    """What rank 0 knows of its cluster and its uploads."""

    seconds_to_preemption: float | None = None
    """Until a node of this run is preempted; None without a preemption notice."""
    upload_s: float = 0.0
    """Duration of the last checkpoint upload."""
    uploading: bool = False
    """Whether an upload is under way: the next would wait for it, and training with it."""
    can_scale_up: Callable[[], bool] = lambda: False
    """Whether the cluster has free nodes for more ranks; called only when a checkpoint is due."""
    interrupted: bool = False
    """Whether the user wants the run to stop now."""


class StepScheduler:
    """Decides on rank 0 what is due at each sync point. `clock` is in seconds."""

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
        self._validated_images = self._synced_images = images_seen
        self._synced_at = self._reported_at = self._saved_at = clock()
        self._noticed = False

    def decide(self, images_seen: int, state: ClusterState | None = None) -> StepPlan:
        """What is due after `images_seen` images. A validation is always reported, and its weights are checkpointed.

        The first preemption notice makes a checkpoint due at once, for the node may go sooner than it says; training
        then continues, and stops with another checkpoint as late as is safe.
        """
        now, every, state = self._clock(), self._intervals, state or ClusterState()
        seconds_per_update = (now - self._synced_at) / max(1, (images_seen - self._synced_images) // self._batch)
        preempted = state.seconds_to_preemption is not None
        notice, finished = preempted and not self._noticed, images_seen >= self._total
        due = images_seen // every.validate_images > self._validated_images // every.validate_images
        validate = finished or (due and not preempted)  # a validation may take minutes
        report = validate or now - self._reported_at >= every.report_s
        checkpoint = validate or notice or (now - self._saved_at >= every.checkpoint_s and not state.uploading)
        restart = "" if finished else self._restart_reason(state, checkpoint, seconds_per_update)
        checkpoint = checkpoint or bool(restart)
        self._validated_images = images_seen if validate else self._validated_images
        self._reported_at = now if report else self._reported_at
        self._saved_at = now if checkpoint else self._saved_at
        self._synced_images, self._synced_at, self._noticed = images_seen, now, preempted
        return StepPlan(
            report=report,
            validate=validate,
            checkpoint=checkpoint,
            finished=finished,
            restart=restart,
            preemption_notice=notice,
            updates_to_next_sync=self._updates_to_next_sync(images_seen, seconds_per_update),
        )

    def _restart_reason(self, state: ClusterState, checkpoint: bool, seconds_per_update: float) -> str:
        if state.interrupted:
            return "interrupted"
        if state.seconds_to_preemption is not None:
            # The next sync point must leave time for a checkpoint, even one that takes twice as long as the last.
            needed = 2 * state.upload_s + PREEMPTION_MARGIN_S + self._intervals.sync_s + seconds_per_update
            return "node preemption" if state.seconds_to_preemption <= needed else ""
        return "scaling up to more nodes" if checkpoint and state.can_scale_up() else ""

    def _updates_to_next_sync(self, images_seen: int, seconds_per_update: float) -> int:
        """As many as fit into the sync interval, but none beyond the next validation or the end."""
        every = self._intervals.validate_images
        due = min((images_seen // every + 1) * every, self._total)
        to_due = -(-(due - images_seen) // self._batch)
        by_time = int(self._intervals.sync_s / max(seconds_per_update, 1e-9))
        return max(1, min(to_due, by_time))


class Sync:
    """Collectives beside the gradients. With one rank and no process group all of them are local.

    report                 sends metrics to the driver
    seconds_to_preemption  until a node is preempted, None without a notice; the same on all ranks, which must all call
    can_scale_up           whether the cluster has free nodes for more ranks
    interrupted            whether the user wants the run to stop; asked on rank 0
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None] | None = None,
        seconds_to_preemption: Callable[[], float | None] = lambda: None,
        can_scale_up: Callable[[], bool] = lambda: False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._report, self.seconds_to_preemption, self.can_scale_up = report, seconds_to_preemption, can_scale_up
        self.interrupted = interrupted
        self._alone = not (dist.is_available() and dist.is_initialized())

    def broadcast_from_rank0(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What `function(*arguments)` returns on rank 0, on every rank. All ranks must call it at the same update."""
        if self._alone:
            return function(*arguments)
        values: list[Any] = [function(*arguments) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank."""
        if not self._alone:
            dist.all_reduce(values)
        return values

    def gather(self, value: _T) -> list[_T]:
        """The values of all ranks in the order of ranks, on every rank."""
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
        """Sends metrics to the driver. All ranks must call it the same number of times."""
        if self._report:
            self._report(metrics)
