"""A tiny measurement of streams: readers return the same bytes, figures are consistent, objects are deleted."""

import os
import threading

import pytest

from benchmarks.stream import SAMPLE_BYTES, Settings, lane, measure, readers_of
from cluster.errors import InputError
from cluster.storage import join, open_store
from deblur.data.stream import BLOCK_BYTES


def test_figures_are_consistent_and_objects_are_deleted(bucket: str) -> None:
    figures = measure(Settings(store=join(bucket, "bench"), objects=2, mb=1, streams=2, rounds=1))
    for other in ("store", "boto3", "boto3_ranged"):
        rates = figures["ours_mb_per_second"], figures[f"{other}_mb_per_second"]
        assert figures[f"ours_to_{other}"] == pytest.approx(rates[0] / rates[1])
        assert figures[f"{other}_processor_seconds_per_gb"] > 0
    assert figures["many_ours_processor_seconds_per_gb"] > 0
    assert open_store(bucket).list() == []


def test_every_reader_reads_the_same_bytes(bucket: str) -> None:
    store, content = open_store(join(bucket, "bench")), os.urandom(2 * SAMPLE_BYTES + 17)
    store.put("x", content)
    for name, read in readers_of(store, len(content)).items():
        assert b"".join(read("x")) == content, name


def test_a_lane_reads_a_block_ahead() -> None:
    store = _Held()
    lane(store, "x", 2 * BLOCK_BYTES)
    assert store.most == 2


class _Held:
    """A store whose first two reads wait for each other: only who asks ahead gets on at once."""

    url = "memory"

    def __init__(self) -> None:
        self.most, self._now, self._lock, self._both = 0, 0, threading.Lock(), threading.Event()

    def get(self, key: str, start: int, end: int) -> bytes:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            if self._now == 2:
                self._both.set()
        self._both.wait(2)
        with self._lock:
            self._now -= 1
        return bytes(end - start)


def test_a_store_that_is_not_a_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="--store is /tmp; it must be s3://"):
        Settings(store="/tmp")
    with pytest.raises(InputError, match="--store is missing"):
        measure(Settings())
