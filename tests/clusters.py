"""A cluster of several nodes on this machine, whose losses are noticed soon."""

import contextlib
import warnings
from collections.abc import Iterator

import pytest

from cluster.local import LocalCluster, Settings, can_isolate, local_cluster

ISOLATED = can_isolate()
# A node that does not answer is missed after seconds instead of Ray's minute.
HEALTH_CHECK = {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "3"}


@contextlib.contextmanager
def two_nodes(drain_s: int) -> Iterator[LocalCluster]:
    """A head and two worker nodes, in network namespaces where this machine permits them and with a warning elsewhere.

    A node that is told to end has `drain_s` seconds.
    """
    if not ISOLATED:
        warnings.warn("no network namespaces here: nodes share one address and no link is cut", stacklevel=2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in HEALTH_CHECK.items():
            patch.setenv(f"RAY_health_check_{name}", value)
        with local_cluster(Settings(nodes=2, isolated=ISOLATED, drain_s=drain_s)) as started:
            yield started
