"""Start of a rank on a large dataset: reading its index, the plan, and the samples of its first updates.

python -m benchmarks.index --json

Writes a synthetic index with 500 samples per shard into a temporary folder, in both versions of the format (version 1
had all samples in index.json), and reads each in a process of its own. No shards are written: what is measured ends
where the first bytes of pictures would be read.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import option, run
from benchmarks.memory import measured
from cluster.storage import Store, open_store
from deblur.data.dataset import Dataset
from deblur.data.index import INDEX, Index, Sample, Shard, Split, encode_table, read_index, sha256, write_index
from deblur.data.plan import Plan

PER_SHARD = 500
SAMPLE_BYTES = 250_000  # a pair of squares of 256 pixels as PNG
LANES = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    samples: str = option("200000,1000000,10000000", "Numbers of samples.")
    version_1_up_to: int = option(1_000_000, "Largest number of samples for version 1, which takes 0.7 GB per million.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for count in map(int, settings.samples.split(",")):
        versions = {"version 2": write_version_2}
        if count <= settings.version_1_up_to:
            versions |= {"version 1": write_version_1}
        for name, write in versions.items():
            with tempfile.TemporaryDirectory(prefix="deblur-index-") as folder:
                write(open_store(folder), count)
                seconds, peak = measured(start, folder)
                size = (Path(folder) / INDEX).stat().st_size
            figures[f"{count:,} {name}"] = {
                "seconds": round(seconds, 3),
                "peak_mb": round(peak / 1e6, 1),
                "index_json_mb": round(size / 1e6, 1),
            }
    return figures


def start(folder: str) -> float:
    """Seconds of what a rank does before it reads the first pictures, with one rank and LANES lanes."""
    begin = time.perf_counter()
    store = open_store(folder)
    dataset = Dataset(store, read_index(store))
    shards = dataset.index.splits["train"].shards
    plan = Plan(shard_sizes=tuple(shard.num_samples for shard in shards), batch_size=LANES, seed=1)
    for lane in range(LANES):
        shard, nth = plan.sample(0, plan.position(lane, 0))
        assert dataset.samples(shards[shard])[nth].length == SAMPLE_BYTES
    return time.perf_counter() - begin


def write_version_2(store: Store, count: int) -> None:
    shards = []
    for name, samples in tables(count):
        table = encode_table(samples)
        size = SAMPLE_BYTES * len(samples)
        shard = Shard(name=name, size_bytes=size, num_samples=len(samples), table_sha256=sha256(table))
        store.put(shard.table, table)
        shards.append(shard)
    write_index(store, Index(made={}, splits={"train": Split(shards=tuple(shards), smallest=(256, 256))}))


def write_version_1(store: Store, count: int) -> None:
    rows = [
        {"name": name, "size_bytes": SAMPLE_BYTES * len(samples), "samples": [vars(sample) for sample in samples]}
        for name, samples in tables(count)
    ]
    content = {"made": {}, "splits": {"train": {"shards": rows, "smallest": [256, 256]}}}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    store.put(INDEX, json.dumps({"version": 1, "digest": digest, **content}, indent=1).encode())


def tables(count: int) -> Iterator[tuple[str, list[Sample]]]:
    """(name, samples) of each shard."""
    for first in range(0, count, PER_SHARD):
        yield (
            f"train/{first // PER_SHARD:06d}.tar",
            [
                Sample(
                    key=f"photographs-{first + nth:08d}-r00192-c00384",
                    offset=nth * SAMPLE_BYTES,
                    length=SAMPLE_BYTES,
                    crc32=(first + nth) * 2654435761 % 2**32,
                )
                for nth in range(min(PER_SHARD, count - first))
            ],
        )


if __name__ == "__main__":
    run("index", __doc__, Settings, measure)
