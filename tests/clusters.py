"""Clusters of several nodes on this machine, isolated if permitted, otherwise with a warning; and jobs on them."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from benchmarks.recovery import HEALTH_CHECK
from cluster.local import LocalCluster, Settings, find_processes, local_cluster
from cluster.rehearsal.network import can_isolate

ISOLATED = can_isolate()


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


def until(condition: Callable[[], Any], client: JobSubmissionClient, job: str) -> None:
    """Waits for a condition, which must hold before the job ends."""
    while not condition():
        assert not client.get_job_status(job).is_terminal(), client.get_job_logs(job)
        time.sleep(0.05)


def log_at_the_end(client: JobSubmissionClient, job: str) -> str:
    """Waits for the end of a job."""
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.05)
    return client.get_job_logs(job)


def workers(cluster: LocalCluster) -> list[int]:
    """PIDs of the processes that run tasks of cluster/on_ray/tasks.py, on all nodes."""
    found = []
    for process in find_processes(cluster.name):
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:  # exited
            continue
        if command.startswith(b"ray::_run"):
            found.append(process)
    return found
