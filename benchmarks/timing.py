"""Wall-clock seconds of alternatives, measured alternately in one process."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def alternate(works: Mapping[str, Callable[[], Any]], rounds: int, count: int = 1) -> dict[str, list[float]]:
    """Seconds of each work per round; alternating, so that other load on the machine affects all of them."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work, count))
    return found


def seconds(work: Callable[[], Any], count: int = 1) -> float:
    """Mean seconds of `count` calls, GPU work included."""
    wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - start) / count


def wait() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
