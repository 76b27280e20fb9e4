"""Peak memory of a function, measured in its own process; on a CPU without the memory of the imports."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import wait


def peak_bytes(work: Callable[..., Any], *arguments: Any) -> int:
    """Peak bytes of `work(*arguments)`, which are pickled."""
    return measured(work, *arguments)[1]


def measured(work: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """What `work(*arguments)` returns, and its peak bytes; all are pickled."""
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_send, args=(queue, work, arguments))
    process.start()
    result: tuple[Any, int] = queue.get()
    process.join()
    return result


def _send(queue: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    before = _resident("VmRSS")
    result = work(*arguments)
    wait()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM") - before
    queue.put((result, peak))


def _resident(which: str) -> int:
    """Memory of this process: VmRSS now, VmHWM peak. (getrusage's peak starts at the parent's.)"""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024
