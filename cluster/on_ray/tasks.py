"""A function for each of many items, on N nodes: independent of each other, so that none has to wait for another.

An item whose process or node is lost is done again, elsewhere if need be, three times at most; what one cannot do is no
reason not to do the others.
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

AT_ONCE = 2  # items for each GPU, or each node without one: one is read or written while the other is computed
RETRIES = 3
LOOK_S = 10.0  # how often it is looked whether any node is left
_T = TypeVar("_T")
_Work = Callable[[Any], Any]


def for_each(make: Callable[[], _Work], items: Iterable[_T], placement: Placement) -> Iterator[tuple[_T, Any]]:
    """Each item, in the order in which they are done, with what `make()(item)` returns for it.

    `make` is called once in each process. An item that cannot be done in spite of retries comes with Ray's error; what
    the function raises by itself ends everything. Raises InputError where the cluster stays too small, or loses all of
    its nodes, for `wait_s`.
    """
    with connected():
        group, nodes = _nodes(placement)
        slots = deque(nodes * (group.ranks_per_node * _at_once(group)))
        shared, waiting, running = ray.put(make), iter(items), {}
        while True:
            while slots and (item := next(waiting, None)) is not None:
                node = slots.popleft()
                running[_start(shared, item, group, node)] = item, node
            if not running:
                return
            task = _next_done(list(running), placement)
            item, node = running.pop(task)
            slots.append(node)
            yield item, _outcome(task)


def _nodes(placement: Placement) -> tuple[Group, list[str]]:
    """What each gets, and their ids."""
    while True:
        group = wait_for_nodes(placement)
        nodes = [node["NodeID"] for node in free_nodes(placement)]
        if len(nodes) >= group.nodes:  # else somebody took one meanwhile
            return group, nodes[: group.nodes]


def _at_once(group: Group) -> int:
    return min(AT_ONCE, group.cpus_per_rank)


def _start(shared: ray.ObjectRef, item: Any, group: Group, node: str) -> ray.ObjectRef:
    cpus = group.cpus_per_rank // _at_once(group)
    return _do.options(
        num_cpus=cpus,
        num_gpus=group.gpus_per_rank / _at_once(group),
        max_retries=RETRIES,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),  # elsewhere if it is lost
    ).remote([shared], item, cpus)


@ray.remote(max_calls=0)  # with a GPU Ray would end the process after each item, and its model with it
def _do(shared: list[ray.ObjectRef], item: Any, cpus: int) -> Any:
    torch.set_num_threads(cpus)
    return _made(shared[0])(item)


@lru_cache(maxsize=1)
def _made(shared: ray.ObjectRef) -> _Work:
    return ray.get(shared)()


def _next_done(running: list[ray.ObjectRef], placement: Placement) -> ray.ObjectRef:
    """A task that has ended. Nodes that are lost are waited for as at the start; others are no reason to wait here."""
    alone_since, told = time.monotonic(), False
    while True:
        done, _ = ray.wait(running, timeout=LOOK_S)
        if done:
            return done[0]
        now = time.monotonic()
        if any_node(placement):
            alone_since, told = now, False
        elif now - alone_since > placement.wait_s:
            raise InputError(
                f"no node has been there for {placement.wait_s:.0f} s; the same command goes on (--wait-s)"
            )
        elif not told:
            print("waiting for nodes: none is there; add some", flush=True)
            told = True


def _outcome(task: ray.ObjectRef) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, FINAL):
            raise error.cause from error
        raise
    except RayError as error:
        return error
