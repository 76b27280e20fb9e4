"""Chooses nodes for ranks: alive, large enough, free and responding. Requests missing ones from the autoscaler."""

import contextlib
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import InputError
from cluster.on_ray import internals
from cluster.on_ray.placement import AUTOSCALES, Placement
from cluster.storage import preflight

PING_TIMEOUT_S = 15.0
SETTLE_S = 10.0  # in which nodes of a group that has just ended become free
POLL_S = 1.0

Node = dict[str, Any]
"""An entry of `ray.nodes()`."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The nodes on which a group of ranks starts, and the resources of each rank."""

    nodes: int
    ranks_per_node: int
    cpus_per_rank: int
    gpus_per_rank: int


def wait_for_nodes(placement: Placement, with_gpus: bool = False, restarted: bool = False) -> Group:
    """Waits for free, responding nodes and prints what is missing; returns the group to start.

    Raises InputError if there are too few after `wait_s`, and within seconds if there are nodes, but none that is large
    enough; not when `restarted`, for then the large ones were lost.
    """
    least, autoscales = placement.min_nodes or placement.nodes, os.environ.get(AUTOSCALES) == "1"
    start = enough_at = time.monotonic()
    printed, settled = "", False
    with contextlib.closing(_request_nodes(placement, with_gpus)) as requests:
        while True:
            _remove_orphaned_placement_groups()
            now = time.monotonic()
            early = now - start < min(SETTLE_S, placement.wait_s)
            # Nodes of a group that has just ended become free in a moment, and must not be requested. Whether any is
            # busy is asked first: one that becomes free between the two questions would be overlooked.
            settled = settled or not early or not _any_busy()
            nodes = free_nodes(placement, with_gpus)
            if not early and not restarted:
                _refuse_small_nodes(placement)
            # All are requested, even where fewer suffice: nodes that are already on their way allow more ranks.
            if autoscales and settled and len(nodes) < placement.nodes:
                next(requests)
            if len(nodes) >= (least if settled and not (early and autoscales) else placement.nodes):
                return _group(nodes, placement)
            missing = f"{len(nodes)} of {least} nodes are available; {_remedy(placement, len(nodes))}"
            if placement.shared_cluster and len(_fitting_nodes(placement, with_gpus, free=False)) >= least:
                enough_at = now
            if now - enough_at > placement.wait_s:
                raise InputError(f"waited {placement.wait_s:.0f} s: {missing}")
            if missing != printed and len(nodes) < least:
                print(f"waiting for nodes: {missing}", flush=True)
                printed = missing
            time.sleep(POLL_S)


def free_nodes(placement: Placement, with_gpus: bool = False) -> list[Node]:
    """Nodes that are large enough for their ranks, idle and responding.

    If any node has GPUs, or had (`with_gpus`), nodes without are not used.
    """
    return _responding(_fitting_nodes(placement, with_gpus))


def any_node(placement: Placement) -> bool:
    """Whether any node is large enough for its ranks, busy or not."""
    return bool(_fitting_nodes(placement, free=False))


def count_free_slots(placement: Placement) -> int:
    """How many groups of ranks of this placement fit on the nodes that are free now."""
    free = internals.available_resources_per_node()
    nodes = free_nodes(placement)
    if placement.nodes > 1:
        return len(nodes) // placement.nodes
    shares = [(_share(node["Resources"], placement), free.get(node["NodeID"], {})) for node in nodes]
    return sum(_count_groups(share, left) for share, left in shares if share)


def run_on(node_id: str, function: Callable[..., Any], *arguments: Any) -> ray.ObjectRef[Any]:
    """Starts a function on a node, beside whatever runs there: it reserves nothing."""
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: ray.ObjectRef[Any] = _remote(function).options(scheduling_strategy=affinity).remote(*arguments)
    return task


def _remove_orphaned_placement_groups() -> None:
    """Frees what Ray Train reserved for groups that died during startup.

    Ray 2.58 frees it only when the driver ends (tried: the placement group outlives its controller).
    """
    for group in internals.orphaned_placement_groups():
        remove_placement_group(group)


def _request_nodes(placement: Placement, with_gpus: bool) -> Generator[None, None, None]:
    """Requests nodes from the autoscaler, one check per `next`; withdraws the request when it is closed.

    A pending placement group requests distinct nodes and ends with the driver, however that ends. It reserves nothing
    before all of its nodes exist; then it is removed, because the ranks need what it has reserved.
    """
    while True:
        for bundles in _bundle_candidates(placement, with_gpus):
            group = placement_group(bundles, strategy="STRICT_SPREAD")
            try:
                while not (created := _is_created(group)) and not internals.is_infeasible(group, PING_TIMEOUT_S):
                    yield
            finally:
                remove_placement_group(group)
            if created:
                yield
                break


def _bundle_candidates(placement: Placement, with_gpus: bool) -> list[list[dict[str, float]]]:
    """What to request: the first, then the next each time the autoscaler reports the last one as infeasible.

    It provides all nodes of a placement group or none, so the number has to come down to what is possible, as far as
    `min_nodes`; and whether it can provide GPUs is unknown until some were requested.
    """
    ranks = placement.ranks_per_node or 1
    bundles: list[dict[str, float]] = [{"CPU": ranks, "GPU": ranks}]
    if not with_gpus and not _gpu_nodes():
        bundles.append({"CPU": ranks})
    sizes = range(placement.nodes, (placement.min_nodes or placement.nodes) - 1, -1)
    return [[bundle] * size for bundle in bundles for size in sizes]


def _is_created(group: PlacementGroup) -> bool:
    return bool(placement_group_table(group)["state"] == "CREATED")


def _remedy(placement: Placement, present: int) -> str:
    ranks = placement.ranks_per_node
    needs = "a GPU or a CPU" if ranks is None else f"resources for {ranks} ranks"
    fewer = "".join(f" or use {flag} {present}" for flag in placement.flags) if present else ""
    return f"each needs {needs}; add nodes{fewer} (--wait-s {placement.wait_s:.0f})"


def _refuse_small_nodes(placement: Placement) -> None:
    """Raises InputError if all nodes are too small for their ranks, unless an autoscaler may start larger ones."""
    nodes = [node["Resources"] for node in _alive_nodes() if node["Resources"].get("CPU")]
    if os.environ.get(AUTOSCALES) == "1" or not nodes or any(_share(node, placement) for node in nodes):
        return
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node["CPU"]))
    has = " and ".join(f"{int(largest[kind])} {kind}s" for kind in ("CPU", "GPU") if largest.get(kind))
    ranks, groups = placement.ranks_per_node, placement.groups_per_node
    if groups > 1:
        what, cure = f"{groups} trials of {ranks or 1} ranks", "lower --trials-per-node, or add larger nodes"
    elif ranks:
        what, cure = f"{ranks} ranks", "lower --ranks-per-node, or add larger nodes"
    else:
        what, cure = "a rank per GPU", "start nodes with a CPU for each GPU"
    raise InputError(f"no node is large enough for {what}: the largest has {has}; {cure}")


def _any_busy() -> bool:
    free = internals.available_resources_per_node()
    return any(free.get(node["NodeID"], {}).get("CPU", 0) < node["Resources"].get("CPU", 0) for node in _alive_nodes())


def _fitting_nodes(placement: Placement, with_gpus: bool = False, free: bool = True) -> list[Node]:
    """Nodes with free resources for their ranks; with `free=False` those that would have them when idle."""
    left = internals.available_resources_per_node() if free else {}
    gpu_nodes = _gpu_nodes()
    return [
        node
        for node in (gpu_nodes if gpu_nodes or with_gpus else _alive_nodes())
        if (share := _share(node["Resources"], placement))
        and _count_groups(share, left.get(node["NodeID"], {}) if free else node["Resources"])
    ]


def _group(nodes: list[Node], placement: Placement) -> Group:
    """A group on these nodes, whose ranks get what the smallest node has for each."""
    shares = [share for node in nodes if (share := _share(node["Resources"], placement))]
    smallest = min(shares, key=lambda share: (share.ranks_per_node, share.cpus_per_rank))
    return replace(smallest, nodes=min(len(nodes), placement.nodes))


def _count_groups(share: Group, left: dict[str, float]) -> int:
    """How many groups fit into the free resources of a node."""
    needs = {"CPU": share.cpus_per_rank, "GPU": share.gpus_per_rank}
    return min(int(left.get(kind, 0) // (share.ranks_per_node * each)) for kind, each in needs.items() if each)


def _alive_nodes() -> list[Node]:
    return [node for node in ray.nodes() if node["Alive"]]


def _gpu_nodes() -> list[Node]:
    return [node for node in _alive_nodes() if node["Resources"].get("GPU")]


def _share(resources: dict[str, float], placement: Placement) -> Group | None:
    """The ranks of one group on a node, and what each gets; None if the node is too small."""
    cpus, gpus = (int(resources.get(kind, 0)) // placement.groups_per_node for kind in ("CPU", "GPU"))
    if resources.get("GPU") and not gpus:
        return None
    ranks = placement.ranks_per_node or max(1, gpus)
    if cpus < ranks or (gpus and gpus < ranks):
        return None
    return Group(nodes=1, ranks_per_node=ranks, cpus_per_rank=cpus // ranks, gpus_per_rank=1 if gpus else 0)


def _responding(nodes: list[Node]) -> list[Node]:
    """Nodes that run a task now. Ray lists a node for a while after its loss, and one that is being preempted."""
    pings = {run_on(node["NodeID"], preflight.ping): node for node in nodes}
    ready, late = ray.wait(list(pings), num_returns=len(pings), timeout=PING_TIMEOUT_S) if pings else ([], [])
    for task in late:
        ray.cancel(task, force=True)
    return [pings[task] for task in ready if _succeeded(task)]


@cache
def _remote(function: Callable[..., Any]) -> Any:
    return ray.remote(num_cpus=0, max_retries=0)(function)


def _succeeded(task: ray.ObjectRef[Any]) -> bool:
    try:
        ray.get(task)
    except ray.exceptions.RayError:
        return False
    return True
