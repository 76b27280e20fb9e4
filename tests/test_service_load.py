"""The service under load and while replicas are killed: every request gets a response, or 503 with Retry-After."""

import contextlib
import math
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from deblur.inference.bulk import restore_file
from deblur.models.trained import load_model
from tests.datasets import picture
from tests.service import running_service
from tests.test_service import bomb, encoded, get, pixels_of, post, text_bomb

SIZES = [(96, 128)] * 3 + [(64, 64)]
MARK = "SERVICE_OF_TEST"


@dataclass
class Load:
    """Clients and what they got. Each waits for its response before it sends again, and obeys Retry-After."""

    address: str
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def of(self, clients: int, expected: dict[bytes, np.ndarray]) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._client, args=(nth, expected, stop)) for nth in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _client(self, nth: int, expected: dict[bytes, np.ndarray], stop: threading.Event) -> None:
        pictures = list(expected)
        turn = nth
        while not stop.is_set():
            data = pictures[turn % len(pictures)]
            start = time.monotonic()
            try:
                status, headers, body = post(self.address, data)
            except Exception as error:  # a lost connection is a lost response
                self.wrong.append(repr(error))
                continue
            self.statuses[status] += 1
            if status == 200:
                self.seconds.append(time.monotonic() - start)
                turn += 1
                if np.abs(pixels_of(body) - expected[data]).max() > 1:
                    self.wrong.append(f"a picture of {len(data)} bytes was restored incorrectly")
            elif status == 503 and "retry-after" in headers:
                stop.wait(int(headers["retry-after"]))
            else:
                self.wrong.append(f"{status} {headers} {body[:200]!r}")

    def table(self, title: str, duration: float) -> str:
        ordered = sorted(self.seconds)
        shown = {share: ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99, 1.0)}
        latencies = ", ".join(f"{share:.0%} {seconds:.2f} s" for share, seconds in shown.items())
        rate = len(ordered) / duration
        return f"{title}: {dict(self.statuses)}, {rate:.1f} pictures/s; latency {latencies}"


@pytest.fixture(scope="module")
def expected(service_model: Path) -> dict[bytes, np.ndarray]:
    model = load_model(str(service_model), torch.device("cpu"))
    sent = [encoded(picture(seed, *size)) for seed, size in enumerate(SIZES)]
    return {data: pixels_of(restore_file(model, data, "in.png", ".png", torch.device("cpu"))) for data in sent}


def replicas(mark: str) -> list[int]:
    """The processes of a service's replicas."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended in between
            is_replica = (process / "cmdline").read_bytes().startswith(b"ray::ServeReplica")
            if is_replica and f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def memory_mb(process: int, kind: str = "VmRSS") -> float:
    """Resident memory of a process, or its peak with VmHWM."""
    (kilobytes,) = re.findall(rf"{kind}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(kilobytes) / 1000


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_32_clients_get_all_responses_and_memory_does_not_grow(
    service_model: Path, tmp_path: Path, expected: dict[bytes, np.ndarray]
) -> None:
    marked = {MARK: "load", "SPT_NOENV": "1"}
    with running_service(service_model, tmp_path / "log", **marked) as address:
        warm = Load(address)
        with warm.of(32, expected):
            time.sleep(10)
        (replica,) = replicas("load")
        before = memory_mb(replica)
        load = Load(address)
        with load.of(32, expected):
            time.sleep(60)
        after = memory_mb(replica)
        print(load.table("32 clients", 60), f"replica {before:.0f} MB -> {after:.0f} MB")
    assert not load.wrong
    # The queue holds all of them.
    assert set(load.statuses) == {200}
    assert after < before + 200


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_full_queue_is_answered_with_retry_after(
    service_model: Path, tmp_path: Path, expected: dict[bytes, np.ndarray]
) -> None:
    """More clients than a replica and the queue of its proxy take."""
    with running_service(service_model, tmp_path / "log") as address:
        load = Load(address)
        with load.of(120, expected):
            time.sleep(15)
            assert get(f"{address}/-/healthz") == "success"
        print(load.table("120 clients", 15))
        assert not load.wrong
        assert set(load.statuses) == {200, 503}
        assert post(address, next(iter(expected)))[0] == 200


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_replicas_scale_up_and_killed_ones_are_replaced_with_no_error_but_503(
    service_model: Path, tmp_path: Path, expected: dict[bytes, np.ndarray]
) -> None:
    marked = {MARK: "kill", "SPT_NOENV": "1"}
    with running_service(service_model, tmp_path / "log", "--max-replicas", "2", **marked) as address:
        load, start = Load(address), time.monotonic()
        with load.of(8, expected):
            # The load requires a second replica.
            assert len(replicas("kill")) == 1
            while len(replicas("kill")) < 2:
                assert time.monotonic() < start + 120
                time.sleep(0.2)
            print(f"a second replica after {time.monotonic() - start:.0f} s of load")
            for _ in range(2):
                killed = replicas("kill")[0]
                os.kill(killed, signal.SIGKILL)
                until = time.monotonic() + 90
                while not (alive := replicas("kill")) or killed in alive:
                    assert time.monotonic() < until
                    time.sleep(0.2)
                answered = load.statuses[200]
                while load.statuses[200] < answered + 10:
                    assert time.monotonic() < until, load.statuses
                    time.sleep(0.2)
        print(load.table("8 clients, two kills", time.monotonic() - start))
    assert not load.wrong
    assert set(load.statuses) <= {200, 503}
    assert load.statuses[503] <= 4 * 8


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_decompression_bombs_take_little_memory(service_model: Path, tmp_path: Path) -> None:
    long = encoded(np.zeros((16, 300_000, 3), np.uint8))  # a few kilobytes, 4.8 megapixels, a thousand tiles
    marked = {MARK: "memory", "SPT_NOENV": "1"}
    with running_service(service_model, tmp_path / "log", **marked) as address:
        assert post(address, encoded(picture(0, 1500, 1500)))[0] == 200  # memory of a common picture is allocated
        (replica,) = replicas("memory")
        before = memory_mb(replica, "VmHWM")
        statuses = [post(address, data, timeout_s=200)[0] for data in (bomb(), text_bomb(), long)]
        after = memory_mb(replica, "VmHWM")
    print(f"peak memory of the replica: {before:.0f} MB -> {after:.0f} MB")
    assert statuses == [413, 400, 200]
    assert after < before + 300
