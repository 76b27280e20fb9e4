"""Several ranks as real processes on this machine, connected by gloo, without Ray."""

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

# Ranks are forked from a server that has imported these: in a fresh interpreter that takes 5 s, longer than most tests.
mp.get_context("forkserver").set_forkserver_preload(
    ["torch._dynamo", "torch.fx.experimental.symbolic_shapes", "deblur.training.loop", "hypothesis", "pytest"]
)


def run_ranks(worker: Callable[..., Any], num_ranks: int, folder: Path, *arguments: Any) -> list[Any]:
    """Runs `worker(rank, *arguments)` on each rank and returns their results; `folder` must be new to this call."""
    folder.mkdir(parents=True, exist_ok=True)
    context = start_ranks(worker, num_ranks, folder, *arguments)
    while not context.join():
        pass
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def start_ranks(worker: Callable[..., Any], num_ranks: int, folder: Path, *arguments: Any) -> mp.ProcessContext:
    """Starts the ranks without waiting for them: the test may kill `context.processes`."""
    folder.mkdir(parents=True, exist_ok=True)
    return mp.start_processes(
        _rank_main, (worker, num_ranks, str(folder), arguments), num_ranks, join=False, start_method="forkserver"
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
        # What an exception's frames still hold, DDP among it, must be freed before the group, not at the interpreter's
        # exit: a rank once aborted there.
        gc.collect()
        dist.destroy_process_group()
