"""Several ranks as real processes on this machine, talking through gloo, without Ray."""

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.sync import Rank


def run_ranks(worker: Callable[..., Any], num_ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """What `worker(rank, *arguments)` returned on each of the ranks; `folder` must be new to this call."""
    folder.mkdir(parents=True, exist_ok=True)
    context = start_ranks(worker, num_ranks, folder, *arguments)
    while not context.join():
        pass
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def start_ranks(worker: Callable[..., Any], num_ranks: int, folder: Path, *arguments: Any) -> mp.ProcessContext:
    """The same without waiting: the test may kill `context.processes`."""
    folder.mkdir(parents=True, exist_ok=True)
    return mp.start_processes(
        _rank_main, (worker, num_ranks, str(folder), arguments), num_ranks, join=False, start_method="spawn"
    )


def _rank_main(rank: int, worker: Callable[..., Any], num_ranks: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if num_ranks > 1:
        store = dist.FileStore(f"{folder}/rendezvous", num_ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=120))
    result = worker(Rank(rank=rank, num_ranks=num_ranks, rank_of_node=rank, ranks_per_node=num_ranks), *arguments)
    torch.save(result, f"{folder}/result-{rank}.pt")
    if num_ranks > 1:
        # What an exception's frames still hold, DDP among it, must go before the group, not at the interpreter's end: a
        # rank was once seen to abort there.
        gc.collect()
        dist.destroy_process_group()
