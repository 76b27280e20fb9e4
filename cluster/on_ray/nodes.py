"""Which nodes ranks can be started on: those that are there, hold them, are free and answer; an autoscaler is asked."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from cluster.storage import preflight

ANSWER_S = 15.0
FREE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """The nodes that a group of ranks is started on, and what each rank gets."""

    nodes: int
    ranks_per_node: int
    cpus_per_rank: int
    gpus_per_rank: int


def wait_for_nodes(placement: Placement, with_gpus: bool = False) -> Group:
    """Waits for nodes that are free and answer, saying what is missing; returns those to start on.

    Raises InputError where they are too few after `wait_s`.
    """
    start, told, settled = time.monotonic(), None, False
    enough_at = start
    least, autoscaled = placement.min_nodes or placement.nodes, _autoscaled()
    with contextlib.closing(_request_nodes(placement, with_gpus)) as asking:
        while True:
            _remove_orphaned_placement_groups()
            nodes = free_nodes(placement, with_gpus)
            now = time.monotonic()
            waited = now - start
            early = waited < min(FREE_S, placement.wait_s)
            # Those of a group that has just ended are free a moment later, and need not be asked for.
            settled = settled or not early or not _any_busy()
            # All are asked for, also where fewer will do: those on their way at the start make room for more ranks.
            if autoscaled and settled and len(nodes) < placement.nodes:
                next(asking)
            if len(nodes) >= (least if settled and not (early and autoscaled) else placement.nodes):
                shares = [_share(node["Resources"], placement) for node in nodes]
                fewest = min(shares, key=lambda group: (group.ranks_per_node, group.cpus_per_rank))
                return replace(fewest, nodes=min(len(nodes), placement.nodes))
            missing = f"{len(nodes)} of {least} nodes are there and free; " + _how_to_go_on(placement, len(nodes))
            if placement.shared_cluster and len(_fitting_nodes(placement, with_gpus, free=False)) >= least:
                enough_at = now
            if now - enough_at > placement.wait_s:
                raise InputError(f"waited {placement.wait_s:.0f} s: {missing}")
            if missing != told and len(nodes) < least:
                print(f"waiting for nodes: {missing}", flush=True)
                told = missing
            time.sleep(1)


def free_nodes(placement: Placement, with_gpus: bool = False) -> list[dict[str, Any]]:
    """What Ray says of the nodes that hold their ranks, do nothing else, and answer.

    Where any node has GPUs, or had (`with_gpus`), those without are no place to train.
    """
    return _answering(_fitting_nodes(placement, with_gpus))


def any_node(placement: Placement) -> bool:
    """Whether any node is there that holds its ranks, busy or not."""
    return bool(_fitting_nodes(placement, free=False))


def count_free_slots(placement: Placement) -> int:
    """How many groups of ranks of this placement the nodes that are free now hold beside each other."""
    left = ray._private.state.available_resources_per_node()
    nodes = free_nodes(placement)
    if placement.nodes > 1:
        return len(nodes) // placement.nodes
    shares = [(_share(node["Resources"], placement), left.get(node["NodeID"], {})) for node in nodes]
    return sum(_groups(share, free) for share, free in shares if share)


def _remove_orphaned_placement_groups() -> None:
    """Removes what Ray Train reserved for groups that died while they were being started.

    Ray 2.58 gives that back with the driver's end alone (tried: the placement group outlives its controller).
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    for information in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(information)
        by_the_dead = group.creator_actor_dead and not ray.ActorID(group.creator_actor_id).is_nil()
        gone = group.state == PlacementGroupTableData.REMOVED
        if by_the_dead and group.creator_job_id == job and not group.is_detached and not gone:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def _autoscaled() -> bool:
    """Whether nodes come when they are asked for.

    Ray's own record of the kinds of nodes that could come stays empty (2.58), and every cluster of KubeRay's says that
    it has autoscaler v2. Where that is true the head, in whose pod drivers run, starts no monitor of its own.
    """
    start_of_head = os.environ.get("KUBERAY_GEN_RAY_START_CMD", "--no-monitor")
    return is_autoscaler_v2(fetch_from_server=True) and "--no-monitor" in start_of_head


def _request_nodes(placement: Placement, with_gpus: bool) -> Iterator[None]:
    """Asks the autoscaler for nodes, one look at a time, until it is closed; nothing is left of it then.

    A placement group that waits asks for distinct nodes and ends with the driver, however that ends. It reserves
    nothing before all of its nodes are there; then it goes, for the ranks need what it has reserved.
    """
    while True:
        for bundles in _bundle_candidates(placement, with_gpus):
            group = placement_group(bundles, strategy="STRICT_SPREAD")
            try:
                while not (placed := _is_placed(group)) and not _is_refused(group):
                    yield
            finally:
                remove_placement_group(group)
            if placed:
                yield
                break


def _bundle_candidates(placement: Placement, with_gpus: bool) -> list[list[dict[str, float]]]:
    """What nodes to ask for: the first, and the next each time that the autoscaler says it has no such nodes.

    It brings all nodes of a group or none, so that their number has to come down to what there can be, as far as to
    `min_nodes`; and it does not say whether there can be nodes with GPUs before it was asked for some.
    """
    ranks = placement.ranks_per_node or 1
    kinds = [{"CPU": ranks, "GPU": ranks}]
    if not with_gpus and not _gpu_nodes():
        kinds.append({"CPU": ranks})
    sizes = range(placement.nodes, (placement.min_nodes or placement.nodes) - 1, -1)
    return [[kind] * size for kind in kinds for size in sizes]


def _is_placed(group: PlacementGroup) -> bool:
    return bool(placement_group_table(group)["state"] == "CREATED")


def _is_refused(group: PlacementGroup) -> bool:
    """Whether the autoscaler has said that it cannot bring these nodes."""
    status = ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=ANSWER_S)
    refused = GetClusterStatusReply.FromString(status).autoscaling_state.infeasible_gang_resource_requests
    return any(group.id.hex() in request.details for request in refused)


def _how_to_go_on(placement: Placement, present: int) -> str:
    ranks = placement.ranks_per_node
    needs = "a GPU or a CPU" if ranks is None else f"room for {ranks} ranks"
    fewer = f" or start with --nodes {present} or --min-nodes {present}" if present else ""
    return f"each needs {needs}; add nodes{fewer} (--wait-s {placement.wait_s:.0f})"


def _any_busy() -> bool:
    free = ray._private.state.available_resources_per_node()
    return any(free.get(node["NodeID"], {}).get("CPU", 0) < node["Resources"].get("CPU", 0) for node in _alive_nodes())


def _fitting_nodes(placement: Placement, with_gpus: bool = False, free: bool = True) -> list[dict[str, Any]]:
    """Nodes with room for their ranks, or with `free=False` those that have it when nothing else runs there."""
    left = ray._private.state.available_resources_per_node() if free else {}
    gpu_nodes = _gpu_nodes()
    return [
        node
        for node in (gpu_nodes if gpu_nodes or with_gpus else _alive_nodes())
        if (share := _share(node["Resources"], placement))
        and _groups(share, left.get(node["NodeID"], {}) if free else node["Resources"])
    ]


def _groups(share: Group, left: dict[str, float]) -> int:
    """How many groups what is left of a node holds."""
    needs = {"CPU": share.cpus_per_rank, "GPU": share.gpus_per_rank}
    return min(int(left.get(kind, 0) // (share.ranks_per_node * each)) for kind, each in needs.items() if each)


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _gpu_nodes() -> list[dict[str, Any]]:
    return [node for node in _alive_nodes() if node["Resources"].get("GPU")]


def _share(resources: dict[str, float], placement: Placement) -> Group | None:
    """What a rank of a node gets; None where the node is too small."""
    cpus, gpus = (int(resources.get(kind, 0)) // placement.groups_per_node for kind in ("CPU", "GPU"))
    if resources.get("GPU") and not gpus:
        return None
    ranks = placement.ranks_per_node or max(1, gpus)
    if cpus < ranks or (gpus and gpus < ranks):
        return None
    return Group(nodes=1, ranks_per_node=ranks, cpus_per_rank=cpus // ranks, gpus_per_rank=1 if gpus else 0)


def _answering(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes that run a task now: Ray lists a node for a while after it was lost, and one that is being taken."""
    asked = {run_on(node["NodeID"], preflight.ping): node for node in nodes}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
    for task in late:
        ray.cancel(task, force=True)
    return [asked[task] for task in ready if _succeeded(task)]


@cache
def _remote(function: Callable[..., Any]) -> Any:
    return ray.remote(num_cpus=0, max_retries=0)(function)


def run_on(node_id: str, function: Callable[..., Any], *arguments: Any) -> ray.ObjectRef:
    """Starts a function on a node, besides whatever runs there."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _remote(function).options(scheduling_strategy=there).remote(*arguments)


def _succeeded(task: ray.ObjectRef) -> bool:
    try:
        ray.get(task)
    except ray.exceptions.RayError:
        return False
    return True
