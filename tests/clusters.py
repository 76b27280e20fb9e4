"""Clusters of several nodes on this machine: isolated if permitted, otherwise with a warning."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster.local import LocalCluster, Settings, local_cluster
from cluster.rehearsal.network import can_isolate

ISOLATED = can_isolate()
# An unreachable node is declared dead after seconds instead of Ray's minute.
HEALTH_CHECK = {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "3"}


@contextlib.contextmanager
def isolated_cluster(settings: Settings) -> Iterator[LocalCluster]:
    """A cluster whose nodes are in network namespaces if this machine permits them."""
    if not ISOLATED:
        warnings.warn(
            "no permission for network namespaces: nodes share one address, and links cannot be cut", stacklevel=2
        )
    with local_cluster(replace(settings, isolated=ISOLATED)) as started:
        yield started


@contextlib.contextmanager
def two_nodes(drain_s: int, cpus_per_node: int = 1) -> Iterator[LocalCluster]:
    """A head and two worker nodes with fast health checks; a terminated one drains for `drain_s` seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HEALTH_CHECK.items():
            patch.setenv(f"RAY_health_check_{name}", value)
        with isolated_cluster(Settings(nodes=2, drain_s=drain_s, cpus_per_node=cpus_per_node)) as started:
            yield started
