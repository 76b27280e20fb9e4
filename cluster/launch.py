"""A worker function on N nodes under Ray Train: one rank per GPU, or as many per node as asked for on CPUs."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster.errors import DamagedError, InputError, StorageUnavailable
from cluster.sync import Rank, Sync, ray_sync

COLLECTIVE_TIMEOUT_S = 600
WORKERS_START_TIMEOUT_S = 900  # Ray's own 60 s is too short for a large image, and it would try again for ever
MAX_FAILURES = 3

_KNOWN = (InputError, DamagedError, StorageUnavailable)  # errors that say all by themselves

Worker = Callable[[dict[str, Any], Rank, Sync], None]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where ranks go. `ranks_per_node` None: one per GPU, or one where a node has none."""

    nodes: int = 1
    ranks_per_node: int | None = None
    wait_s: float = 600.0


@dataclass(frozen=True)
class _Node:
    """What a rank of a node gets."""

    ranks: int
    cpus_per_rank: float
    gpus_per_rank: int


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """In the cluster of RAY_ADDRESS, or in one that is started on this machine and ends with the context."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKERS_START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(COLLECTIVE_TIMEOUT_S))
    # Ray would print each line of a rank twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    ray.init(logging_level="WARNING")
    try:
        yield
    finally:
        ray.shutdown()  # and with it the ranks' last lines are printed


def launch(worker: Worker, config: dict[str, Any], placement: Placement, storage_url: str) -> None:
    """Runs `worker(config, rank, sync)` on every rank and returns when all are done.

    `config` must be plain values: it is written into Ray's own records. `storage_url` is a folder or s3:// URL that all
    nodes reach, for these records. Raises InputError where the cluster stays too small for `wait_s`.
    """
    with connected():
        _train(worker, config, placement, storage_url)


def _train(worker: Worker, config: dict[str, Any], placement: Placement, storage_url: str) -> None:
    node = _wait_for_nodes(placement)
    ranks = placement.nodes * node.ranks
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={"worker": worker, "config": config, "nodes": placement.nodes},
        torch_config=TorchConfig(backend="nccl" if node.gpus_per_rank else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=bool(node.gpus_per_rank),
            resources_per_worker={"CPU": node.cpus_per_rank, "GPU": node.gpus_per_rank},
            placement_strategy=_strategy(placement.nodes, node.ranks),
        ),
        run_config=RunConfig(
            # A name of its own for each start: what a run continues from is in its checkpoints, not in Ray's records.
            name=f"ray-{time.strftime('%Y%m%dT%H%M%S')}",
            storage_path=storage_url,
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES, max_preemption_failures=-1, controller_failure_limit=10
            ),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        causes = [e for e in error.worker_failures.values() if isinstance(e, _KNOWN)]
        raise (causes[0] if causes else error) from error


def _strategy(nodes: int, ranks_per_node: int) -> str:
    """With several ranks per node Ray has no strict form; their shares of the node's CPUs leave no room for more."""
    if nodes == 1:
        return "STRICT_PACK"
    return "STRICT_SPREAD" if ranks_per_node == 1 else "SPREAD"


def _on_worker(settings: dict[str, Any]) -> None:
    context = ray.train.get_context()
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    torch.set_num_threads(max(1, int(cpus)))
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats every report
    _check_nodes(settings["nodes"])
    rank = Rank(
        rank=context.get_world_rank(),
        num_ranks=context.get_world_size(),
        rank_of_node=context.get_local_rank(),
        ranks_per_node=context.get_local_world_size(),
        device=get_device(),
    )
    settings["worker"](settings["config"], rank, ray_sync())


def _check_nodes(wanted: int) -> None:
    """Ranks that share a node by accident would share its disk, its network and its fate."""
    mine = ray.get_runtime_context().get_node_id()
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    if len(set(found)) != wanted:
        raise RuntimeError(f"--nodes {wanted}: Ray placed the ranks on {len(set(found))} nodes")


def _wait_for_nodes(placement: Placement) -> _Node:
    """Waits for nodes that can hold their ranks, saying what is missing; returns the share of each rank."""
    deadline, told = time.monotonic() + placement.wait_s, None
    while True:
        fitting = _fitting(placement)
        if len(fitting) >= placement.nodes:
            fewest = min(fitting, key=lambda n: (n.ranks, n.cpus_per_rank))
            return _Node(placement.ranks_per_node or fewest.ranks, fewest.cpus_per_rank, fewest.gpus_per_rank)
        missing = f"{len(fitting)} of {placement.nodes} nodes are there; " + _how_to_go_on(placement, len(fitting))
        if time.monotonic() > deadline:
            raise InputError(f"waited {placement.wait_s:.0f} s: {missing}")
        if missing != told:
            print(f"waiting for nodes: {missing}", flush=True)
            told = missing
        time.sleep(2)


def _how_to_go_on(placement: Placement, present: int) -> str:
    ranks = placement.ranks_per_node
    needs = "a GPU or a CPU" if ranks is None else f"room for {ranks} ranks"
    fewer = f" or start with --nodes {present}" if present else ""
    return f"each needs {needs}; add nodes{fewer} (--wait-s {placement.wait_s:.0f})"


def _fitting(placement: Placement) -> list[_Node]:
    """The nodes that hold their ranks; where any node has GPUs, those without are no place to train."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU")]
    return [fit for node in with_gpus or nodes if (fit := _fit(node, placement.ranks_per_node))]


def _fit(resources: dict[str, float], ranks_per_node: int | None) -> _Node | None:
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    ranks = ranks_per_node or max(1, gpus)
    if cpus < ranks or (gpus and gpus < ranks):
        return None
    return _Node(ranks, cpus // ranks, 1 if gpus else 0)
