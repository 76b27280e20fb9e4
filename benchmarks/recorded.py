"""deblur.train that writes down what each rank consumes, and when: python -m benchmarks.recorded FLAGS OF deblur.train

RECORD names the folder (on a disk that all nodes share); every group of ranks that starts adds a file per rank. PACE_S
makes each update take so much longer: small networks on few cores are quicker than the faults that they are to meet.
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
    """What each rank does in the place of `deblur.training.job.train_rank`."""
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
class Start:
    """What one group of ranks consumed, all ranks together."""

    pids: tuple[int, ...]
    """By rank."""
    lines: tuple[dict[str, Any], ...]
    """In the order of time."""

    @property
    def num_ranks(self) -> int:
        return len(self.pids)

    @property
    def begin(self) -> int:
        """images_seen of the first update."""
        return min(line["images_seen"] for line in self.lines)

    @property
    def end(self) -> int:
        """images_seen of the last update that was begun."""
        return max(line["images_seen"] for line in self.lines)


def read_record(folder: Path) -> list[Start]:
    """The groups so far that have begun an update, in order; a line that is being written is left out."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: int(p.stem.partition("-")[2])):
        files.setdefault(path.stem.partition("-")[0], []).append(path)
    starts = []
    for _, paths in sorted(files.items()):
        ranks = [[json.loads(line) for line in path.read_text().splitlines(True) if line[-1] == "\n"] for path in paths]
        lines = sorted((line for rank in ranks for line in rank[1:]), key=lambda line: line["time"])
        if lines:
            starts.append(Start(tuple(rank[0]["pid"] for rank in ranks), tuple(lines)))
    return starts


@dataclass(frozen=True)
class Account:
    """What became of a run's data and work."""

    starts: int
    updates_lost: int
    """Begun and not committed: made again after a restart."""
    ids_lost: int
    """Positions of the plan that no committed update consumed."""
    ids_repeated: int
    """Positions that committed updates consumed more than once in an epoch."""


def account(starts: list[Start], plan: Plan, total: int) -> Account:
    """Counts committed work: of each group what came before the images at which the next one went on."""
    ends = [start.begin for start in starts[1:]] + [total]
    consumed = Counter(
        (line["epoch"], position)
        for start, end in zip(starts, ends, strict=True)
        for line in start.lines
        if line["images_seen"] < end
        for position in line["positions"]
    )
    planned = {
        (update // plan.updates_per_epoch, plan.position(lane, update % plan.updates_per_epoch))
        for update in range(total // plan.batch_size)
        for lane in range(plan.batch_size)
    }
    begun = [(start.end - end) // plan.batch_size + 1 for start, end in zip(starts, ends, strict=True)]
    return Account(
        starts=len(starts),
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
    from benchmarks.recorded import main as imported_main  # ranks find their function by the name of its module

    imported_main()
