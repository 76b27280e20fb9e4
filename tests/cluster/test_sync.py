"""The agenda: what is due when, against a clock that the test moves."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cluster.sync import LEAVE_S, ClusterState, Intervals, StepScheduler, Sync


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def walk(agenda: StepScheduler, clock: Clock, *, start: int, batch: int, seconds: float) -> list[tuple[int, object]]:
    """(images_seen, record) of every meeting when each update takes `seconds`."""
    images, meetings, updates = start, [], 1
    while True:
        images += batch * updates
        clock.now += seconds * updates
        record = agenda.decide(images)
        meetings.append((images, record))
        if record.stop:
            return meetings
        updates = record.updates_to_next


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
    agenda = StepScheduler(
        Intervals(validate_images=every), images_seen=start, total_images=total, batch_size=batch, clock=clock
    )
    meetings = walk(agenda, clock, start=start, batch=batch, seconds=seconds)
    expected = {total} | {i for i in range(start + batch, total + 1, batch) if i // every > (i - batch) // every}
    assert {images for images, record in meetings if record.validate} == expected
    assert all(record.report and record.checkpoint for _, record in meetings if record.validate)
    assert meetings[-1][0] == total


def test_reports_checkpoints_and_meetings_keep_their_seconds() -> None:
    clock = Clock()
    agenda = StepScheduler(
        Intervals(validate_images=10**9, report_s=10, checkpoint_s=60, sync_s=3),
        images_seen=0,
        total_images=8 * 2000,
        batch_size=8,
        clock=clock,
    )
    meetings = walk(agenda, clock, start=0, batch=8, seconds=0.5)[:-1]
    assert meetings[1][0] - meetings[0][0] == 8 * 6
    saved = [images / 8 * 0.5 for images, record in meetings if record.checkpoint]
    reported = [images / 8 * 0.5 for images, record in meetings if record.report]
    assert all(60 <= b - a <= 63 for a, b in itertools.pairwise(saved))
    assert all(10 <= b - a <= 13 for a, b in itertools.pairwise(reported))
    assert len(saved) >= 15


def agenda(clock: Clock, validate_images: int = 10**9) -> StepScheduler:
    """Of updates that take a second each."""
    intervals = Intervals(validate_images=validate_images, checkpoint_s=60)
    return StepScheduler(intervals, images_seen=0, total_images=8 * 2000, batch_size=8, clock=clock)


def test_the_first_notice_is_answered_with_a_checkpoint_and_the_last_moment_with_another_and_an_end() -> None:
    clock = Clock()
    decisions, due_at, images = agenda(clock), 100.0, 0
    while True:
        clock.now += 3
        images += 8 * 3
        noticed = clock.now > 70
        record = decisions.decide(images, ClusterState(due_at - clock.now if noticed else None, upload_s=4.0))
        assert record.checkpoint == (clock.now in (60, 72) or bool(record.leave)), clock.now
        if record.leave:
            break
    # Time for an upload that takes twice as long as the last, but no more than a meeting earlier than needed.
    left = due_at - clock.now
    assert 2 * 4.0 + LEAVE_S <= left <= 2 * 4.0 + LEAVE_S + 3 + 1 + 3
    assert not record.stop


def test_a_notice_without_time_left_is_left_at_once() -> None:
    record = agenda(Clock()).decide(8, ClusterState(seconds_to_preemption=-1e9))
    assert record.leave
    assert record.checkpoint


def test_no_validation_begins_on_a_node_that_is_taken_but_the_last_one() -> None:
    clock = Clock()
    assert agenda(clock, validate_images=8).decide(8).validate
    assert not agenda(clock, validate_images=8).decide(8, ClusterState(seconds_to_preemption=30)).validate
    last = agenda(clock, validate_images=8).decide(8 * 2000, ClusterState(seconds_to_preemption=1))
    assert last.validate
    assert last.stop
    assert not last.leave


def test_room_for_more_ranks_is_asked_for_and_taken_only_with_a_checkpoint() -> None:
    clock, asked = Clock(), []

    def room() -> bool:
        asked.append(clock.now)
        return clock.now > 100

    decisions, images = agenda(clock), 0
    while True:
        clock.now += 3
        images += 8 * 3
        record = decisions.decide(images, ClusterState(can_scale_up=room))
        if record.leave:
            break
    assert asked == [60, 120]
    assert record.checkpoint


def test_alone_a_rank_meets_itself() -> None:
    reports: list[dict] = []
    sync = Sync(report=reports.append)
    assert sync.broadcast_from_rank0(lambda: 7) == 7
    sync.report({"x": 1})
    assert reports == [{"x": 1}]
