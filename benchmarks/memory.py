"""The memory that some work takes at most: in a process of its own, on a CPU beside what the imports take."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import wait


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """Of `work(*arguments)`; the function is found by its name, and arguments are copied."""
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_tell_peak, args=(queue, work, arguments))
    process.start()
    peak = int(queue.get())
    process.join()
    return peak


def _tell_peak(queue: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    before = _resident("VmRSS")
    work(*arguments)
    wait()
    queue.put(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM") - before)


def _resident(which: str) -> int:
    """Memory of this process: VmRSS now, VmHWM at most. (getrusage's maximum is that of the parent, at first.)"""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024
