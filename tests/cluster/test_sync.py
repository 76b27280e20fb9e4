"""StepScheduler: what is due when, against a clock that the test moves."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cluster.sync import PREEMPTION_MARGIN_S, ClusterState, Intervals, StepScheduler, Sync


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def walk(scheduler: StepScheduler, clock: Clock, *, start: int, batch: int, seconds: float) -> list[tuple[int, object]]:
    """(images_seen, plan) of every sync point when each update takes `seconds`."""
    images, syncs, updates = start, [], 1
    while True:
        images += batch * updates
        clock.now += seconds * updates
        plan = scheduler.decide(images)
        syncs.append((images, plan))
        if plan.finished:
            return syncs
        updates = plan.updates_to_next_sync


@given(
    batch=st.integers(1, 32),
    updates=st.integers(1, 300),
    every=st.integers(1, 2000),
    done=st.integers(0, 299),
    seconds=st.floats(0.001, 20),
)
def test_validations_fall_on_the_same_images_whatever_the_speed_and_the_start(
    batch: int, updates: int, every: int, done: int, seconds: float
) -> None:
    total, start, clock = batch * updates, batch * min(done, updates - 1), Clock()
    scheduler = StepScheduler(
        Intervals(validate_images=every), images_seen=start, total_images=total, batch_size=batch, clock=clock
    )
    syncs = walk(scheduler, clock, start=start, batch=batch, seconds=seconds)
    expected = {total} | {i for i in range(start + batch, total + 1, batch) if i // every > (i - batch) // every}
    assert {images for images, plan in syncs if plan.validate} == expected
    assert all(plan.report and plan.checkpoint for _, plan in syncs if plan.validate)
    assert syncs[-1][0] == total


def test_reports_checkpoints_and_sync_points_keep_their_intervals() -> None:
    clock = Clock()
    scheduler = StepScheduler(
        Intervals(validate_images=10**9, report_s=10, checkpoint_s=60, sync_s=3),
        images_seen=0,
        total_images=8 * 2000,
        batch_size=8,
        clock=clock,
    )
    syncs = walk(scheduler, clock, start=0, batch=8, seconds=0.5)[:-1]
    assert syncs[1][0] - syncs[0][0] == 8 * 6
    saved = [images / 8 * 0.5 for images, plan in syncs if plan.checkpoint]
    reported = [images / 8 * 0.5 for images, plan in syncs if plan.report]
    assert all(60 <= b - a <= 63 for a, b in itertools.pairwise(saved))
    assert all(10 <= b - a <= 13 for a, b in itertools.pairwise(reported))
    assert len(saved) >= 15


def scheduler(clock: Clock, validate_images: int = 10**9) -> StepScheduler:
    """Of updates that take a second each."""
    intervals = Intervals(validate_images=validate_images, checkpoint_s=60)
    return StepScheduler(intervals, images_seen=0, total_images=8 * 2000, batch_size=8, clock=clock)


def test_a_preemption_notice_makes_a_checkpoint_at_once_and_another_with_a_restart_just_before_the_deadline() -> None:
    clock = Clock()
    decisions, due_at, images = scheduler(clock), 100.0, 0
    while True:
        clock.now += 3
        images += 8 * 3
        noticed = clock.now > 70
        plan = decisions.decide(images, ClusterState(due_at - clock.now if noticed else None, upload_s=4.0))
        assert plan.checkpoint == (clock.now in (60, 72) or bool(plan.restart)), clock.now
        if plan.restart:
            break
    # Time for an upload that takes twice as long as the last, but no more than a sync interval earlier than needed.
    left = due_at - clock.now
    assert 2 * 4.0 + PREEMPTION_MARGIN_S <= left <= 2 * 4.0 + PREEMPTION_MARGIN_S + 3 + 1 + 3
    assert not plan.finished


def test_a_notice_without_time_left_restarts_at_once() -> None:
    plan = scheduler(Clock()).decide(8, ClusterState(seconds_to_preemption=-1e9))
    assert plan.restart
    assert plan.checkpoint


def test_an_interrupted_run_stops_at_once_with_a_checkpoint() -> None:
    plan = scheduler(Clock()).decide(8, ClusterState(interrupted=True, uploading=True))
    assert plan.checkpoint
    assert plan.stop
    assert plan.restart == "interrupted"


def test_no_validation_starts_on_a_preempted_node_except_the_last() -> None:
    clock = Clock()
    assert scheduler(clock, validate_images=8).decide(8).validate
    assert not scheduler(clock, validate_images=8).decide(8, ClusterState(seconds_to_preemption=30)).validate
    last = scheduler(clock, validate_images=8).decide(8 * 2000, ClusterState(seconds_to_preemption=1))
    assert last.validate
    assert last.finished
    assert not last.restart


def test_scaling_up_is_considered_only_when_a_checkpoint_is_due() -> None:
    clock, asked = Clock(), []

    def can_scale_up() -> bool:
        asked.append(clock.now)
        return clock.now > 100

    decisions, images = scheduler(clock), 0
    while True:
        clock.now += 3
        images += 8 * 3
        plan = decisions.decide(images, ClusterState(can_scale_up=can_scale_up))
        if plan.restart:
            break
    assert asked == [60, 120]
    assert plan.checkpoint


def test_a_single_rank_needs_no_process_group() -> None:
    reports: list[dict] = []
    sync = Sync(report=reports.append)
    assert sync.broadcast_from_rank0(lambda: 7) == 7
    sync.report({"x": 1})
    assert reports == [{"x": 1}]
