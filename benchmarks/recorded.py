"""deblur.train with a record of the samples each rank consumes, and when: python -m benchmarks.recorded TRAIN_FLAGS

RECORD names the folder (on a disk that all nodes share); each worker group adds a file per rank. PACE_S is a pause per
update: without it small networks would finish before a fault can be injected.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from cluster.errors import one_line_errors
from cluster.sync import Rank, Sync
from deblur import train
from deblur.data.loader import Batch, batches
from deblur.data.plan import Plan
from deblur.training import job, loop


def train_rank(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    """Replaces `deblur.training.job.train_rank`."""
    folder, pace_s = Path(os.environ["RECORD"]), float(os.environ.get("PACE_S", "0"))
    start = sync.broadcast_from_rank0(time.time_ns)

    def recorded(*arguments: Any) -> Generator[Batch, None, None]:
        plan, images_seen = arguments[1], arguments[4]
        with (folder / f"{start}-{rank.rank}.jsonl").open("w", buffering=1) as file:
            file.write(json.dumps({"pid": os.getpid(), "num_ranks": rank.num_ranks}) + "\n")
            for batch in batches(*arguments):
                time.sleep(pace_s)
                line = {"time": time.time(), "images_seen": images_seen, "epoch": batch.epoch}
                file.write(json.dumps(line | {"positions": batch.positions}) + "\n")
                images_seen += plan.batch_size
                yield batch

    with mock.patch.object(loop, "batches", recorded):
        return job.train_rank(config, rank, sync)


@dataclass(frozen=True)
class WorkerGroup:
    """The samples consumed by the ranks of one (re)start of a run."""

    pids: tuple[int, ...]
    """Process ids, by rank."""
    lines: tuple[dict[str, Any], ...]
    """Updates of all ranks, ordered by time."""

    @property
    def num_ranks(self) -> int:
        return len(self.pids)

    @property
    def begin(self) -> int:
        """images_seen of the first update."""
        return min(line["images_seen"] for line in self.lines)

    @property
    def end(self) -> int:
        """images_seen of the last update begun."""
        return max(line["images_seen"] for line in self.lines)


def read_record(folder: Path) -> list[WorkerGroup]:
    """The worker groups that have begun an update, in order; incomplete last lines are skipped."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: int(p.stem.partition("-")[2])):
        files.setdefault(path.stem.partition("-")[0], []).append(path)
    groups = []
    for _, paths in sorted(files.items()):
        ranks = [[json.loads(line) for line in path.read_text().splitlines(True) if line[-1] == "\n"] for path in paths]
        lines = sorted((line for rank in ranks for line in rank[1:]), key=lambda line: line["time"])
        if lines:
            groups.append(WorkerGroup(tuple(rank[0]["pid"] for rank in ranks), tuple(lines)))
    return groups


@dataclass(frozen=True)
class Account:
    """Samples and updates that a run lost or repeated."""

    starts: int
    """Worker groups."""
    updates_lost: int
    """Begun but not in a checkpoint: repeated after a restart."""
    ids_lost: int
    """Positions of the plan that no checkpointed update consumed."""
    ids_repeated: int
    """Positions that checkpointed updates consumed more than once in an epoch."""


def account(groups: list[WorkerGroup], plan: Plan, total: int) -> Account:
    """Counts checkpointed work: of each group, the updates before the images at which the next group resumed."""
    ends = [group.begin for group in groups[1:]] + [total]
    consumed = Counter(
        (line["epoch"], position)
        for group, end in zip(groups, ends, strict=True)
        for line in group.lines
        if line["images_seen"] < end
        for position in line["positions"]
    )
    planned = {
        (update // plan.updates_per_epoch, plan.position(lane, update % plan.updates_per_epoch))
        for update in range(total // plan.batch_size)
        for lane in range(plan.batch_size)
    }
    begun = [(group.end - end) // plan.batch_size + 1 for group, end in zip(groups, ends, strict=True)]
    return Account(
        starts=len(groups),
        updates_lost=sum(begun[:-1]),
        ids_lost=len(planned - consumed.keys()),
        ids_repeated=sum(count - 1 for count in consumed.values()) + len(consumed.keys() - planned),
    )


def main() -> None:
    folder = Path(os.environ["RECORD"])
    (folder / "driver.pid").write_text(str(os.getpid()))
    with one_line_errors(), mock.patch.object(job, "train_rank", train_rank):
        train.main()


if __name__ == "__main__":
    from benchmarks.recorded import (
        main as imported_main,  # ranks import their function by module name, which __main__ is not
    )

    imported_main()
