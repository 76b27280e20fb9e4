"""Throughput of reading shards from a bucket, compared with boto3 and other libraries.

python -m benchmarks.stream --json --store s3://bucket/prefix    (AWS_ENDPOINT_URL and credentials as usual)

Writes random bytes below the prefix, reads them with each reader alternately, and deletes them:

ours              a lane of deblur/data/stream.py: blocks with one block read-ahead, checksums not verified
store             our store, the whole object
boto3             get_object and the whole body
boto3_ranged      get_object of one block after another: the cost of range requests without our code
pyarrow           pyarrow.fs.S3FileSystem, an input stream (if installed)
s3torchconnector  AWS's reader for PyTorch (if installed)

Each reader with one stream, then ours and boto3 with several. CPU seconds are those of this process alone.
"""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

from benchmarks.command import option, run
from benchmarks.timing import alternate
from cluster.errors import InputError
from cluster.storage import Retry, Store, open_store
from cluster.storage.s3 import s3_client
from deblur.data.dataset import Dataset
from deblur.data.index import Index, Sample, Shard, Split
from deblur.data.loader import UPDATES_AHEAD
from deblur.data.plan import Plan
from deblur.data.stream import BLOCK_BYTES, updates

SAMPLE_BYTES = 1_300_000  # a pair of GOPRO in PNG

Reader = Callable[[str], list[bytes]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    store: str | None = option(None, "s3://bucket/prefix.")
    objects: int = option(8, "Objects read per round.")
    mb: int = option(32, "Size of each object in MB (1,000,000 bytes).")
    streams: int = option(8, "Concurrent streams.")
    rounds: int = option(5, "Rounds.")
    json: bool = option(False, "Print one line of JSON at the end.")

    def __post_init__(self) -> None:
        if self.store is not None and not self.store.startswith("s3://"):
            raise InputError(f"--store is {self.store}; it must be s3://bucket/prefix")


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    if settings.store is None:
        raise InputError("--store is missing: s3://bucket/prefix, for objects that are removed at the end")
    store = open_store(settings.store)
    with objects(store, settings) as keys:
        readers = readers_of(store, settings.mb * 1_000_000)
        expected = store.get(keys[0])
        for name, read in readers.items():
            if b"".join(read(keys[0])) != expected:
                raise AssertionError(f"{name} returned different bytes")
        return _measure(settings, readers, keys)


def _measure(settings: Settings, readers: dict[str, Reader], keys: list[str]) -> dict[str, Any]:
    processor: dict[str, list[float]] = {}

    def read_all(work: str, read: Reader, streams: int) -> None:
        before = time.process_time()
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(read, keys))
        processor.setdefault(work, []).append(time.process_time() - before)

    works = {name: partial(read_all, name, read, 1) for name, read in readers.items()}
    for name in ("ours", "boto3"):
        works[f"many_{name}"] = partial(read_all, f"many_{name}", readers[name], settings.streams)
    turns = alternate(works, settings.rounds)
    size = settings.objects * settings.mb * 1_000_000
    figures: dict[str, Any] = {
        f"{name}_mb_per_second": size / 1e6 / statistics.median(found) for name, found in turns.items()
    }
    for other in list(readers)[1:]:
        figures[f"ours_to_{other}"] = statistics.median(turns[other]) / statistics.median(turns["ours"])
        figures[f"ours_to_{other}_of_each_round"] = _ratios(turns[other], turns["ours"])
    figures["many_ours_to_boto3"] = statistics.median(turns["many_boto3"]) / statistics.median(turns["many_ours"])
    figures["many_ours_to_boto3_of_each_round"] = _ratios(turns["many_boto3"], turns["many_ours"])
    for name, found in processor.items():
        figures[f"{name}_processor_seconds_per_gb"] = statistics.median(found) / size * 1e9
    absent = {"pyarrow", "s3torchconnector"} - readers.keys()
    return figures | {"left_out": [f"{name} is not installed" for name in sorted(absent)]}


def _ratios(others: list[float], ours: list[float]) -> list[float]:
    return [other / own for other, own in zip(others, ours, strict=True)]


@contextmanager
def objects(store: Store, settings: Settings) -> Iterator[list[str]]:
    """Keys of objects of random bytes, which are deleted with the context."""
    keys = [f"{nth:06d}.bin" for nth in range(settings.objects)]
    try:
        for key in keys:
            store.put(key, os.urandom(settings.mb * 1_000_000))
        yield keys
    finally:
        for key in keys:
            store.delete(key)


# ---- readers: each returns the parts of an object


def readers_of(store: Store, size: int) -> dict[str, Reader]:
    """Readers whose library is installed, for objects of `size` bytes."""
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    client = s3_client(Retry())

    def boto3(key: str) -> list[bytes]:
        return [client.get_object(Bucket=bucket, Key=f"{prefix}/{key}")["Body"].read()]

    def boto3_ranged(key: str) -> list[bytes]:
        ranges = (f"bytes={start}-{min(start + BLOCK_BYTES, size) - 1}" for start in range(0, size, BLOCK_BYTES))
        return [client.get_object(Bucket=bucket, Key=f"{prefix}/{key}", Range=part)["Body"].read() for part in ranges]

    readers: dict[str, Reader] = {
        "ours": lambda key: lane(store, key, size),
        "store": lambda key: [store.get(key)],
        "boto3": boto3,
        "boto3_ranged": boto3_ranged,
    }
    if find_spec("pyarrow"):
        readers["pyarrow"] = _pyarrow(f"{bucket}/{prefix}", size)
    if find_spec("s3torchconnector"):
        readers["s3torchconnector"] = _s3torchconnector(store.url)
    return readers


def lane(store: Store, key: str, size: int) -> list[bytes]:
    """Reads an object like a lane of the loader: samples the size of a GOPRO pair, requested some updates ahead."""
    starts = range(0, size, SAMPLE_BYTES)
    samples = tuple(Sample(key=str(at), offset=at, length=min(SAMPLE_BYTES, size - at), crc32=0) for at in starts)
    shard = Shard(name=key, size_bytes=size, num_samples=len(samples), table_sha256="")
    split = Split(shards=(shard,), smallest=(0, 0))
    plan = Plan(shard_sizes=(len(samples),), batch_size=1, seed=0)
    dataset = Dataset(store, Index(made={}, splits={"train": split}, tables={key: samples}))
    with ThreadPoolExecutor(2) as fetchers:
        made = islice(updates(dataset, split, plan, range(1), 0, fetchers), len(samples))
        parts = (part for _, _, (part,) in made)
        # As in batches(): waiting for each sample before requesting the next would prevent read-ahead.
        pending, found = deque(islice(parts, UPDATES_AHEAD)), {}
        while pending:
            pending.extend(islice(parts, 1))
            part = pending.popleft()
            found[part.sample.offset] = part.block.result()[part.nth]
        fetchers.shutdown(cancel_futures=True)
    return [found[at] for at in starts]  # the plan starts at a random offset and wraps around


def _pyarrow(place: str, size: int) -> Reader:
    from pyarrow import fs

    # It ignores AWS_ENDPOINT_URL, and uses path-style URLs only with an endpoint.
    scheme, _, server = os.environ.get("AWS_ENDPOINT_URL", "").partition("://")
    named = {"endpoint_override": server, "scheme": scheme} if server else {}
    files = fs.S3FileSystem(region=_region(), **named)

    def read(key: str) -> list[bytes]:
        with files.open_input_stream(f"{place}/{key}") as stream:
            return [stream.read(size)]  # without a size it requests 256 KB at a time

    return read


def _s3torchconnector(url: str) -> Reader:
    from s3torchconnector import S3Checkpoint, S3ClientConfig

    # The same reader as S3MapDataset, but for single keys and with one client and its connections.
    config = S3ClientConfig(force_path_style=True)
    objects = S3Checkpoint(_region(), endpoint=os.environ.get("AWS_ENDPOINT_URL"), s3client_config=config)

    def read(key: str) -> list[bytes]:
        with objects.reader(f"{url}/{key}") as body:
            return [body.read()]

    return read


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


if __name__ == "__main__":
    run("stream", __doc__, Settings, measure)
