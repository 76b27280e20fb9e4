"""Where ranks go; read by those who start them and by those who only ask for it."""

from dataclasses import dataclass

# In the environment of every process of a cluster whose nodes say that they have GPUs and have none: a rehearsal. Ranks
# reserve the GPUs all the same, and compute on CPUs.
LOGICAL_GPUS = "LOGICAL_GPUS"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`nodes` machines with `ranks_per_node` each; None: one per GPU, or one where a node has none.

    With `min_nodes` the ranks start on as few nodes as that, go on with fewer when some are lost, and with more when
    some have come, up to `nodes`. `wait_s` is how long nodes that are missing are waited for.
    """

    nodes: int = 1
    min_nodes: int | None = None
    ranks_per_node: int | None = None
    wait_s: float = 600.0
    groups_per_node: int = 1
    shared_cluster: bool = False
