"""A function for each of many independent items, on N nodes.

An item whose process or node is lost is retried, on another node if need be, up to RETRIES times; an item that fails
does not stop the others.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import FINAL, InputError
from cluster.on_ray.launch import connected
from cluster.on_ray.nodes import Group, any_node, free_nodes, wait_for_nodes
from cluster.on_ray.placement import Placement

ITEMS_AT_ONCE = 2  # per GPU, or per node without one: one is read or written while the other is computed
RETRIES = 3
NODE_CHECK_S = 10.0  # how often to check whether any node is left
_T = TypeVar("_T")
_Work = Callable[[Any], Any]
_Make = Callable[[], _Work]


def for_each(make: _Make, items: Iterable[_T], placement: Placement) -> Iterator[tuple[_T, Any]]:
    """Yields each item with the result of `make()(item)`, in the order of completion.

    `make` is called once per process. An item that fails in spite of retries comes with Ray's error; an error that the
    function raises ends everything. Raises InputError if the cluster stays too small, or without any node, for
    `wait_s`.
    """
    with connected():
        group, nodes = _nodes(placement)
        slots = deque(nodes * (group.ranks_per_node * _items_at_once(group)))
        shared, waiting, running = ray.put(make), iter(items), {}
        while True:
            while slots and (item := next(waiting, None)) is not None:
                node = slots.popleft()
                running[_start(shared, item, group, node)] = item, node
            if not running:
                return
            task = _next_completed(list(running), placement)
            item, node = running.pop(task)
            slots.append(node)
            yield item, _outcome(task)


def _nodes(placement: Placement) -> tuple[Group, list[str]]:
    """The resources of a task, and the ids of the nodes."""
    while True:
        group = wait_for_nodes(placement)
        nodes = [node["NodeID"] for node in free_nodes(placement)]
        if len(nodes) >= group.nodes:  # else another job took one in between
            return group, nodes[: group.nodes]


def _items_at_once(group: Group) -> int:
    return min(ITEMS_AT_ONCE, group.cpus_per_rank)


def _start(shared: ray.ObjectRef[_Make], item: Any, group: Group, node: str) -> ray.ObjectRef[Any]:
    cpus = group.cpus_per_rank // _items_at_once(group)
    task: ray.ObjectRef[Any] = _run.options(
        num_cpus=cpus,
        num_gpus=group.gpus_per_rank / _items_at_once(group),
        max_retries=RETRIES,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),  # another node if it is lost
    ).remote([shared], item, cpus)
    return task


@ray.remote(max_calls=0)  # with a GPU Ray would end the process, and lose its model, after each item
def _run(shared: list[ray.ObjectRef[_Make]], item: Any, cpus: int) -> Any:
    torch.set_num_threads(cpus)
    return _work(shared[0])(item)


@lru_cache(maxsize=1)
def _work(shared: ray.ObjectRef[_Make]) -> _Work:
    work: _Work = ray.get(shared)()
    return work


def _next_completed(running: list[ray.ObjectRef[Any]], placement: Placement) -> ray.ObjectRef[Any]:
    """A completed task. Waits `wait_s` for lost nodes, as at the start; busy nodes do not count as lost."""
    seen_at, printed = time.monotonic(), False
    while True:
        completed, _ = ray.wait(running, timeout=NODE_CHECK_S)
        if completed:
            return completed[0]
        now = time.monotonic()
        if any_node(placement):
            seen_at, printed = now, False
        elif now - seen_at > placement.wait_s:
            raise InputError(
                f"no nodes for {placement.wait_s:.0f} s (--wait-s); add nodes and repeat the command, which continues"
            )
        elif not printed:
            print("waiting for nodes: none left; add nodes", flush=True)
            printed = True


def _outcome(task: ray.ObjectRef[Any]) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, FINAL):
            raise error.cause from error
        raise
    except RayError as error:
        return error
