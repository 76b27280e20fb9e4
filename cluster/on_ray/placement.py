"""Where ranks run. Imports no Ray: commands describe a placement without it."""

from dataclasses import dataclass

# 1 in the environment of every process of a cluster whose nodes declare GPUs that they do not have: a rehearsal. Ranks
# reserve these GPUs and compute on CPUs.
LOGICAL_GPUS = "LOGICAL_GPUS"
# 1 in the environment of drivers of a cluster with Ray's autoscaler (v2): missing nodes are requested from it. Set by
# k8s/overlays/autoscaling; Ray has no public API that tells whether there is an autoscaler.
AUTOSCALES = "CLUSTER_AUTOSCALES"

COLLECTIVE_TIMEOUT_S = 600  # a rank that does not reach a collective within it counts as dead


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`nodes` machines with `ranks_per_node` ranks each; None: one per GPU, or one on a node without GPUs.

    With `min_nodes` ranks start on that many nodes or more, continue on fewer when nodes are lost, and scale up to
    `nodes` when nodes join. `wait_s` is how long to wait for missing nodes. `groups_per_node` groups of ranks share a
    node. On a `shared_cluster` time in which enough nodes exist but are busy does not count towards `wait_s`.
    """

    nodes: int = 1
    min_nodes: int | None = None
    ranks_per_node: int | None = None
    wait_s: float = 600.0
    groups_per_node: int = 1
    shared_cluster: bool = False
    flags: tuple[str, ...] = ("--nodes",)
    """Of the command, that choose the number of nodes; for messages."""
