"""A Ray cluster of several nodes on this machine: for tests, and to try a cluster's commands without one.

python -m cluster.local --nodes 2    runs until it is interrupted and prints the addresses to use
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from ray.cluster_utils import Cluster


@dataclass(frozen=True, kw_only=True)
class Settings:
    nodes: int = 2
    """Worker nodes, beside a head that takes no work."""
    cpus_per_node: int = 1
    """CPUs that each worker node says it has."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    ray: str
    """For RAY_ADDRESS of a driver on this machine."""
    jobs: str
    """For `ray job submit --address`."""


@contextlib.contextmanager
def local_cluster(settings: Settings) -> Iterator[Addresses]:
    """Starts a head without CPUs, as in our manifests, and the worker nodes; all end with the context."""
    # The `python` of a submitted job is this one.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cluster = Cluster()
    try:
        head = cluster.add_node(num_cpus=0, include_dashboard=True, dashboard_port=0)
        for _ in range(settings.nodes):
            cluster.add_node(num_cpus=settings.cpus_per_node)
        cluster.wait_for_nodes()
        yield Addresses(ray=cluster.address, jobs=f"http://{head.address_info['webui_url']}")
    finally:
        cluster.shutdown()


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m cluster.local")
    with local_cluster(settings) as addresses, contextlib.suppress(KeyboardInterrupt):
        print(
            f"export RAY_ADDRESS={addresses.jobs}   # of ray job submit; of drivers here: {addresses.ray}", flush=True
        )
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
