"""The account of consumed samples finds exactly the lost and the repeated ones."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recorded import Account, WorkerGroup, account, read_record
from deblur.data.plan import Plan, lanes_of

PLAN = Plan(shard_sizes=(9, 14), batch_size=4, seed=0)
UPDATES = 13  # two epochs of five updates and a part of a third


def group(begin: int, end: int, num_ranks: int = 2) -> WorkerGroup:
    """A group that consumed the updates [begin, end) of the plan."""
    lines: list[dict[str, Any]] = []
    for update in range(begin, end):
        epoch, nth = divmod(update, PLAN.updates_per_epoch)
        for rank in range(num_ranks):
            positions = [PLAN.position(lane, nth) for lane in lanes_of(rank, num_ranks, 4)]
            lines.append({"time": update, "images_seen": 4 * update, "epoch": epoch, "positions": positions})
    return WorkerGroup(tuple(range(num_ranks)), tuple(lines))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.integers(1, 4)), max_size=4))
def test_restarts_from_checkpoints_lose_and_repeat_nothing(
    history: list[tuple[int, int, int]],
) -> None:
    """Each group makes some updates beyond the checkpoint from which the next one resumes."""
    starts, committed, lost = [], 0, 0
    for done, beyond, num_ranks in history:
        end = min(committed + done, UPDATES - 1)
        if end == committed:
            break
        starts.append(group(committed, end + beyond, num_ranks))
        committed, lost = end, lost + beyond
    starts.append(group(committed, UPDATES))
    assert account(starts, PLAN, 4 * UPDATES) == Account(len(starts), lost, ids_lost=0, ids_repeated=0)


def test_a_group_that_resumes_too_late_has_lost_samples() -> None:
    found = account([group(0, 5), group(6, UPDATES)], PLAN, 4 * UPDATES)
    assert (found.ids_lost, found.ids_repeated) == (4, 0)


def test_wrong_samples_count_as_lost_and_repeated() -> None:
    wrong = group(5, 6)
    shifted = tuple(line | {"epoch": 0} for line in wrong.lines)  # an epoch that begins with the samples of the last
    found = account([group(0, 5), WorkerGroup((0, 1), shifted), group(6, UPDATES)], PLAN, 4 * UPDATES)
    assert (found.ids_lost, found.ids_repeated) == (4, 4)


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    for rank in range(2):
        mine = [line for nth, line in enumerate(group(0, 3).lines) if nth % 2 == rank]
        text = "".join(json.dumps(line) + "\n" for line in [{"pid": rank, "num_ranks": 2}, *mine])
        (tmp_path / f"123-{rank}.jsonl").write_text(text + '{"time": 4, "ima')
    (start,) = read_record(tmp_path)
    assert start == group(0, 3)
    assert (start.begin, start.end) == (0, 8)
