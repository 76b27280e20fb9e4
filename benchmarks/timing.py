"""Wall-clock seconds of things that are compared: in turns, within one process."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def in_turns(works: Mapping[str, Callable[[], Any]], rounds: int, count: int = 1) -> dict[str, list[float]]:
    """Seconds of each work, once per round: what disturbs the machine for a while then disturbs all of them."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work, count))
    return found


def seconds(work: Callable[[], Any], count: int = 1) -> float:
    """Of one of `count`; the GPU has done all of it."""
    wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - start) / count


def wait() -> None:
    """Until the GPU has done what it was given, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pick_device() -> torch.device:
    """Where networks are measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
