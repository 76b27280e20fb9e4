"""A worker function on N nodes under Ray Train: one rank per GPU, or as many per node as asked for on CPUs.

When ranks or nodes are lost, or leave because a node is going to be taken, the group is started again on the nodes that
are there. Ray Train runs each group; starting again is done here and not by its own retries, because here it is known
whether an error can be mended by that, whether there was progress, how many nodes answer, and what to tell the user.
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
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from cluster.errors import FINAL, InputError, RanksFailed
from cluster.on_ray.nodes import Group, free_nodes, run_on, wait_for_nodes
from cluster.on_ray.placement import LOGICAL_GPUS, Placement
from cluster.storage import open_store, preflight
from cluster.sync import COLLECTIVE_TIMEOUT_S, Rank, Sync

GROUP_START_TIMEOUT_S = 180  # then the nodes are counted again; Ray would wait for a lost one for ever
MAX_FAILURES = 3  # in a row without a checkpoint between them
RESULT_S = 120.0
_log = logging.getLogger(__name__)

Worker = Callable[[dict[str, Any], Rank, Sync], bool]


@contextlib.contextmanager
def connected(quiet: bool = False) -> Iterator[str]:
    """In the cluster of RAY_ADDRESS, or in one that is started on this machine and ends with the context.

    The address at which the cluster reaches this machine. With `quiet` what other processes print stays in Ray's logs.
    """
    _set_up_ray()
    if ray.is_initialized():
        yield ray.util.get_node_ip_address()
        return
    ray.init(logging_level="WARNING", log_to_driver=not quiet)
    try:
        yield ray.util.get_node_ip_address()
    finally:
        ray.shutdown()  # and with it the ranks' last lines are printed


def _set_up_ray() -> None:
    os.environ.setdefault("RAY_task_oom_retries", "3")  # of a task that was killed for memory; Ray's own is for ever
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(GROUP_START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(COLLECTIVE_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how soon a rank that died is missed
    # Ray would print each line of a rank twice.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


def launch(
    worker: Worker,
    config: Callable[[int], dict[str, Any]],
    placement: Placement,
    progress: Callable[[], int],
    callbacks: Sequence[UserCallback] = (),
) -> None:
    """Runs `worker(config, rank, sync)` on every rank, again and again until it returns True on the first rank.

    It returns False to be started again with the nodes that are there then. `config` is asked for each group, told how
    many ranks are wanted, and must give plain values: they are written into Ray's own records. `progress` tells in any
    growing number how far the work is committed: groups that fail are started again as long as it grows. `callbacks`
    hear what the ranks report. Raises InputError where the cluster stays too small for `wait_s`, what the worker raised
    where that is final, and RanksFailed after `MAX_FAILURES` failures without progress.
    """
    with connected():
        reached, failures, with_gpus = progress(), 0, False
        while True:
            group = wait_for_nodes(placement, with_gpus)
            with_gpus = group.gpus_per_rank > 0
            try:
                if _run_group(worker, config(placement.nodes * group.ranks_per_node), placement, group, callbacks):
                    return
            except PreemptionError:
                print("a node was taken away before the ranks could leave it; starting again", flush=True)
            except (WorkerGroupError, ControllerError) as error:
                _raise_if_final(error)
                if placement.shared_cluster and _came_too_late(error):
                    continue
                now = progress()
                failures = 1 if now > reached else failures + 1
                reached = now
                if failures > MAX_FAILURES:
                    raise RanksFailed(f"{failures} times without progress; the last time {_cause(error)}") from error
                print(
                    f"{_cause(error)}; starting again from {now} (failure {failures} of at most {MAX_FAILURES} "
                    "without progress)",
                    flush=True,
                )


def everywhere(placement: Placement, function: Callable[..., str], *arguments: Any) -> dict[str, str]:
    """What a function returns on each node that ranks could go to, by the node's address; an error as its text.

    Raises InputError where the cluster stays too small.
    """
    with connected():
        wait_for_nodes(placement)
        nodes = free_nodes(placement)
        asked = {node["NodeManagerAddress"]: run_on(node["NodeID"], function, *arguments) for node in nodes}
        return {address: _result(task) for address, task in asked.items()}


def check_nodes_can_access(readable: str, writable: str, placement: Placement, named: str) -> list[str]:
    """Addresses of the nodes, each of which has read one object, and read and written a root.

    readable  URL of an object
    writable  URL of a root
    named     what the user named them by, for the message

    Raises InputError where a node cannot, and where too few nodes come within the wait.
    """
    with preflight.marker(open_store(writable, preflight.RETRY)) as key:
        answers = everywhere(placement, preflight.check_storage_access, readable, writable, key)
    for address, error in answers.items():
        if error:
            raise InputError(
                f"node {address}: {error}; {named} must name places that every node reaches and is allowed to use: "
                "s3://bucket/prefix, or a folder that all of them mount"
            )
    return sorted(answers)


def _result(task: ray.ObjectRef) -> str:
    try:
        return ray.get(task, timeout=RESULT_S)
    except ray.exceptions.RayError as error:
        return _first_line(error)


def _run_group(
    worker: Worker, config: dict[str, Any], placement: Placement, group: Group, callbacks: Sequence[UserCallback]
) -> bool:
    with tempfile.TemporaryDirectory(prefix="ray-train-") as records:
        trainer = TorchTrainer(
            _on_worker,
            train_loop_config={"worker": worker, "config": config, "placement": placement, "group": group},
            torch_config=TorchConfig(backend=_backend(group), timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=group.nodes * group.ranks_per_node,
                use_gpu=bool(group.gpus_per_rank),
                resources_per_worker={"CPU": group.cpus_per_rank, "GPU": group.gpus_per_rank},
                placement_strategy=_strategy(group),
            ),
            run_config=RunConfig(
                # Ray is given no checkpoint, so its records are of no use after the group has ended.
                storage_path=records,
                callbacks=list(callbacks),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            ),
        )
        with _interrupts_as_before():
            return bool(trainer.fit().return_value)


@contextlib.contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Ray Train leaves a handler of SIGINT behind that keeps its controller, and what that has reserved, alive."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _raise_if_final(error: WorkerGroupError | ControllerError) -> None:
    """Raises what a rank raised where starting again cannot mend it."""
    causes = error.worker_failures.values() if isinstance(error, WorkerGroupError) else [error.controller_failure]
    for cause in causes:
        if isinstance(cause, FINAL):
            raise cause from error
        if "no GPUs found" in str(cause):  # so says NCCL, which is set up before anything of ours runs in a rank
            raise InputError(_no_cuda(str(cause))) from error


def _came_too_late(error: WorkerGroupError | ControllerError) -> bool:
    """Whether another group took the nodes between the look at them and the start."""
    return isinstance(error, ControllerError) and isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)


def _no_cuda(said: str) -> str:
    node = re.search(r"ip=([^,)]+)", said)
    return (
        f"{node[1] if node else 'a node'}: says that it has GPUs, but CUDA finds none there; mend its driver or image, "
        f"or start it with --num-gpus 0. To rehearse without GPUs, set {LOGICAL_GPUS}=1 in every process of the cluster"
    )


def _cause(error: WorkerGroupError | ControllerError) -> str:
    """The first cause in one line. Ranks that lost their peer fail as well: one that died says more."""
    if isinstance(error, ControllerError):
        return f"the ranks could not be started: {_first_line(error.controller_failure)}"
    # Ray 2.58 wraps the death of a rank; _raise_if_final needs no unwrapping: what a rank raised comes as it is.
    causes = {rank: getattr(cause, "health_check_failure", cause) for rank, cause in error.worker_failures.items()}
    rank, cause = min(causes.items(), key=lambda item: (not isinstance(item[1], RayActorError), item[0]))
    return f"rank {rank} {'was lost' if isinstance(cause, RayActorError) else 'failed'}: {_first_line(cause)}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _backend(group: Group) -> str:
    return "nccl" if group.gpus_per_rank and os.environ.get(LOGICAL_GPUS) != "1" else "gloo"


def _strategy(group: Group) -> str:
    """With several ranks per node Ray has no strict form; their shares of the node's CPUs leave no room for more."""
    if group.nodes == 1:
        return "STRICT_PACK"
    return "STRICT_SPREAD" if group.ranks_per_node == 1 else "SPREAD"


def _on_worker(settings: dict[str, Any]) -> bool:
    context, group = ray.train.get_context(), settings["group"]
    torch.set_num_threads(group.cpus_per_rank)
    for chatty in ("ray.train", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    nodes = _nodes_of_ranks()
    if len(nodes) != group.nodes:
        # Ranks that share a node by accident would share its disk, its network and its fate.
        raise RuntimeError(f"{group.nodes} nodes were chosen, but Ray placed the ranks on {len(nodes)}")
    rank = Rank(
        rank=context.get_world_rank(),
        num_ranks=context.get_world_size(),
        rank_of_node=context.get_local_rank(),
        ranks_per_node=context.get_local_world_size(),
        # Ray names a GPU wherever one is reserved, be it there or not.
        device=get_device() if dist.get_backend() == "nccl" else torch.device("cpu"),
        host=ray.util.get_node_ip_address(),
    )
    sync = ray_sync(can_scale_up=lambda: _more_nodes(settings["placement"], group, nodes))
    return settings["worker"](settings["config"], rank, sync)


def _nodes_of_ranks() -> set[str]:
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, ray.get_runtime_context().get_node_id())
    return set(found)


def _more_nodes(placement: Placement, group: Group, mine: set[str]) -> bool:
    """Whether nodes are free that this group lacks."""
    if placement.min_nodes is None or len(mine) >= placement.nodes:
        return False
    free = free_nodes(placement, with_gpus=group.gpus_per_rank > 0)
    return any(node["NodeID"] not in mine for node in free)


def ray_sync(can_scale_up: Callable[[], bool]) -> Sync:
    """The meeting point of a worker of Ray Train."""
    import ray.train  # a machine without Ray can train one rank

    def seconds_to_preemption() -> float | None:
        notice = ray.train.get_preemption_info()
        if notice is None:
            return None
        return (notice.deadline_ms or 0) / 1000 - time.time()  # without a deadline: at any moment

    return Sync(ray.train.report, seconds_to_preemption, can_scale_up)
