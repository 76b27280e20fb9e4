"""Settings of a run as the user gives them. Torch-free: flags are parsed before torch is imported."""

from dataclasses import dataclass

from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from deblur.config.cli import SharedSettings


@dataclass(frozen=True, kw_only=True)
class TrainSettings(SharedSettings):
    """Where a run takes place and what it is called. The recipe's own fields can be set by flags, too."""

    run: str | None = None
    """Name of the run; else from the recipe and the dataset. The same name resumes the same run."""
    nodes: int = 1
    """Machines, with all their GPUs: one rank per GPU, or one per node without GPUs."""
    min_nodes: int | None = None
    """Continue with as few nodes as this if some are lost, and scale up to --nodes when some are added."""
    init_from: str | None = None
    """Run, generator.safetensors (file or s3:// URL) or "embedded", the model in this package: a new run starts from
    that generator, with its architecture."""
    allow_recipe_change: bool = False
    """Resume a run although its recipe or data have changed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_name("run")
        self.at_least_one("nodes")
        self.at_least_one("min_nodes")
        if self.min_nodes and self.min_nodes > self.nodes:
            raise InputError(
                f"--min-nodes {self.min_nodes} is more than --nodes {self.nodes}; choose at most that many"
            )

    @property
    def placement(self) -> Placement:
        """Where the ranks go."""
        return Placement(
            nodes=self.nodes,
            min_nodes=self.min_nodes,
            ranks_per_node=self.ranks_per_node,
            wait_s=self.wait_s,
            flags=("--nodes", "--min-nodes"),
        )
