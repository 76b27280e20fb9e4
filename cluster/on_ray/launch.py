"""A worker function on N nodes under Ray Train: one rank per GPU, or a given number per node on CPUs.

When ranks or nodes are lost or preempted, the group is restarted on the nodes that are left. Ray Train runs each group;
restarts are done here and not by its own retries, because here it is known whether an error is retryable, whether there
was progress, how many nodes respond, and what to tell the user.
"""

import contextlib
import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    FailureConfig,
    PreemptionError,
    RunConfig,
    ScalingConfig,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cluster.errors import FINAL, InputError, RanksFailed
from cluster.on_ray import internals
from cluster.on_ray.nodes import Group, free_nodes, run_on, wait_for_nodes
from cluster.on_ray.placement import COLLECTIVE_TIMEOUT_S, LOGICAL_GPUS, Placement
from cluster.storage import open_store, preflight
from cluster.sync import Rank, Sync

GROUP_START_TIMEOUT_S = 180  # then nodes are chosen again; Ray would wait for a lost one forever
NO_RETRIES: dict[str, Any] = {"max_failures": 0, "max_preemption_failures": 0, "controller_failure_limit": 0}
MAX_FAILURES = 3  # in a row without a checkpoint between them
RESULT_TIMEOUT_S = 120.0
_log = logging.getLogger(__name__)

Worker = Callable[[Any, Rank, Sync], bool]


@contextlib.contextmanager
def connected(quiet: bool = False) -> Iterator[str]:
    """Connects to the cluster of RAY_ADDRESS, or to one on this machine that is started for the context.

    Yields the address at which the cluster reaches this machine. With `quiet` the output of other processes stays in
    Ray's logs. Raises InputError if there is no cluster at RAY_ADDRESS.
    """
    _set_up_ray()
    if ray.is_initialized():
        yield _own_address()
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address and not address.startswith("ray://"):
        raise InputError(
            f"RAY_ADDRESS is {address}, where jobs are submitted; unset it, set it to the cluster's host:port, or run "
            "`ray job submit -- python -m ...`"
        )
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=not quiet)
    except (ConnectionError, ValueError) as error:
        if not address:
            raise
        raise InputError(f"RAY_ADDRESS is {address}: no Ray cluster there ({_first_line(error)}); unset it") from error
    try:
        yield _own_address()
    finally:
        ray.shutdown()  # also prints the last lines of the ranks


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()
    return address


def _set_up_ray() -> None:
    os.environ.setdefault("RAY_task_oom_retries", "3")  # of a task killed for memory; Ray retries forever
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(GROUP_START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(COLLECTIVE_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how soon a dead rank is noticed
    # Ray would print each line of a rank twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


def launch(
    worker: Worker,
    config: Callable[[int], Any],
    placement: Placement,
    progress: Callable[[], int],
    callbacks: Sequence[UserCallback] = (),
) -> None:
    """Runs `worker(config, rank, sync)` on every rank, restarted until it returns True on rank 0.

    worker     returns False to be restarted on the nodes that are available then
    config     called before each start with the world size that `placement` asks for; returns plain values, because
               Ray writes them into its records
    progress   how far the work is committed, a number that only grows: failed groups are restarted while it grows
    callbacks  receive what the ranks report

    Raises InputError if the cluster stays too small for `wait_s`, the worker's own error if it is not retryable, and
    RanksFailed after `MAX_FAILURES` failures without progress.
    """
    with connected():
        committed, failures, with_gpus, restarted = progress(), 0, False, False
        while True:
            group = wait_for_nodes(placement, with_gpus, restarted)
            with_gpus, restarted = group.gpus_per_rank > 0, True
            try:
                if _run_group(worker, config(placement.nodes * group.ranks_per_node), placement, group, callbacks):
                    return
            except PreemptionError:
                print("a node was preempted before the ranks had shut down; restarting", flush=True)
            except (WorkerGroupError, ControllerError) as error:
                _raise_if_final(error)
                if placement.shared_cluster and _nodes_were_taken(error):
                    continue
                now = progress()
                failures = 1 if now > committed else failures + 1
                committed = now
                if failures > MAX_FAILURES:
                    raise RanksFailed(f"{failures} failures without progress; the last one: {_cause(error)}") from error
                print(
                    f"{_cause(error)}; restarting from {now} (failure {failures} of at most {MAX_FAILURES} without "
                    "progress)",
                    flush=True,
                )


def everywhere(placement: Placement, function: Callable[..., str], *arguments: Any) -> dict[str, str]:
    """The result of a function on each node of the placement, by the node's address; an error as its text.

    Raises InputError if the cluster stays too small.
    """
    with connected():
        wait_for_nodes(placement)
        nodes = free_nodes(placement)
        tasks = {node["NodeManagerAddress"]: run_on(node["NodeID"], function, *arguments) for node in nodes}
        return {address: _result(task) for address, task in tasks.items()}


def check_nodes_can_access(readable: str, writable: str, placement: Placement, named: str) -> list[str]:
    """Addresses of the nodes, each of which has read an object, and read and written under a root.

    readable  URL of the object
    writable  URL of the root
    named     the options that name the two, for the message

    Raises InputError if a node cannot, or if the cluster stays too small.
    """
    with preflight.marker(open_store(writable, preflight.RETRY)) as key:
        answers = everywhere(placement, preflight.check_storage_access, readable, writable, key)
    for address, error in answers.items():
        if error:
            raise InputError(
                f"node {address}: {error}; {named} must be accessible from every node: s3://bucket/prefix, or a folder "
                "that all of them mount"
            )
    return sorted(answers)


def _result(task: ray.ObjectRef[str]) -> str:
    try:
        return ray.get(task, timeout=RESULT_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        return _first_line(error)


def _run_group(
    worker: Worker, config: Any, placement: Placement, group: Group, callbacks: Sequence[UserCallback]
) -> bool:
    with tempfile.TemporaryDirectory(prefix="ray-train-") as records:
        trainer = TorchTrainer(  # type checkers see the classes of Ray Train v1
            _run_rank,  # type: ignore[arg-type]
            train_loop_config={"worker": worker, "config": config, "placement": placement, "group": group},
            torch_config=TorchConfig(backend=_backend(group), timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=group.nodes * group.ranks_per_node,
                use_gpu=bool(group.gpus_per_rank),
                resources_per_worker={"CPU": group.cpus_per_rank, "GPU": group.gpus_per_rank},
                placement_strategy=_strategy(group),
            ),
            run_config=RunConfig(
                # Ray gets no checkpoints, so its records are of no use after the group has ended.
                storage_path=records,
                callbacks=list(callbacks),  # type: ignore[arg-type]
                failure_config=FailureConfig(**NO_RETRIES),
            ),
        )
        with _restored_sigint_handler():
            return bool(trainer.fit().return_value)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _restored_sigint_handler() -> Iterator[None]:
    """Ray Train leaves a SIGINT handler behind that keeps its controller, and what that has reserved, alive."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _raise_if_final(error: WorkerGroupError | ControllerError) -> None:
    """Raises what a rank raised if a restart cannot fix it."""
    causes = error.worker_failures.values() if isinstance(error, WorkerGroupError) else [error.controller_failure]
    for cause in causes:
        if isinstance(cause, FINAL):
            raise cause from error
        if "no GPUs found" in str(cause):  # NCCL, which is set up before our code runs in a rank
            raise InputError(_no_cuda(str(cause))) from error


def _nodes_were_taken(error: WorkerGroupError | ControllerError) -> bool:
    """Whether another group took the nodes between their choice and the start."""
    return isinstance(error, ControllerError) and internals.is_startup_timeout(error.controller_failure)


def _no_cuda(message: str) -> str:
    node = re.search(r"ip=([^,)]+)", message)
    return (
        f"{node[1] if node else 'a node'}: declares GPUs, but CUDA finds none; fix its driver or image, or start it "
        f"with --num-gpus 0 (to rehearse without GPUs, set {LOGICAL_GPUS}=1 in every process of the cluster)"
    )


def _cause(error: WorkerGroupError | ControllerError) -> str:
    """The first cause in one line. Ranks fail as well when they lose their peer: one that died comes first."""
    if isinstance(error, ControllerError):
        return f"the ranks could not be started: {_first_line(error.controller_failure)}"
    causes = {rank: internals.unwrap_worker_failure(cause) for rank, cause in error.worker_failures.items()}
    rank, cause = min(causes.items(), key=lambda item: (not isinstance(item[1], RayActorError), item[0]))
    return f"rank {rank} {'was lost' if isinstance(cause, RayActorError) else 'failed'}: {_first_line(cause)}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _backend(group: Group) -> str:
    return "nccl" if group.gpus_per_rank and os.environ.get(LOGICAL_GPUS) != "1" else "gloo"


def _strategy(group: Group) -> str:
    """Ray has no strict spread of several ranks per node; there their CPUs leave no space for a further rank."""
    if group.nodes == 1:
        return "STRICT_PACK"
    return "STRICT_SPREAD" if group.ranks_per_node == 1 else "SPREAD"


def _run_rank(settings: dict[str, Any]) -> bool:
    context, group = ray.train.get_context(), settings["group"]
    torch.set_num_threads(group.cpus_per_rank)
    for verbose in ("ray.train", "botocore"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    nodes = _nodes_of_ranks()
    if len(nodes) != group.nodes:
        # Ranks that share a node unintentionally would share its disk and network, and fail together.
        raise RuntimeError(f"Ray placed the ranks on {len(nodes)} nodes instead of {group.nodes}")
    rank = Rank(
        rank=context.get_world_rank(),
        num_ranks=context.get_world_size(),
        rank_of_node=context.get_local_rank(),
        ranks_per_node=context.get_local_world_size(),
        # get_device gives a GPU wherever one is reserved, whether it exists or not.
        device=get_device() if dist.get_backend() == "nccl" else torch.device("cpu"),
        host=_own_address(),
    )
    sync = ray_sync(can_scale_up=lambda: _can_scale_up(settings["placement"], group, nodes))
    return bool(settings["worker"](settings["config"], rank, sync))


def _nodes_of_ranks() -> set[str]:
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, ray.get_runtime_context().get_node_id())
    return set(found)


def _can_scale_up(placement: Placement, group: Group, current: set[str]) -> bool:
    """Whether there are free nodes for a group that has fewer than it may."""
    if placement.min_nodes is None or len(current) >= placement.nodes:
        return False
    free = free_nodes(placement, with_gpus=group.gpus_per_rank > 0)
    return any(node["NodeID"] not in current for node in free)


def ray_sync(can_scale_up: Callable[[], bool]) -> Sync:
    """The Sync of a rank under Ray Train."""

    def seconds_to_preemption() -> float | None:
        notice = ray.train.get_preemption_info()
        if notice is None:
            return None
        return (notice.deadline_ms or 0) / 1000 - time.time()  # without a deadline: at any time

    return Sync(ray.train.report, seconds_to_preemption, can_scale_up)
