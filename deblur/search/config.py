"""Settings of a search."""

from dataclasses import dataclass, fields
from typing import Literal

from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from deblur.config.cli import SharedSettings
from deblur.config.recipes import Recipe
from deblur.training.settings import TrainSettings

Metric = Literal["psnr", "ssim"]


@dataclass(frozen=True, kw_only=True)
class TuneSettings(SharedSettings):
    """What is searched and where. Fields of the recipe that are set by flags are not searched."""

    search: str | None = None
    """Name of the search; default: from the recipe and the dataset. The same name resumes the same search."""
    trials: int = 20
    """Number of configurations to try; a larger number later extends the search."""
    nodes_per_trial: int = 1
    """Nodes of each trial, with all their GPUs."""
    trials_per_node: int = 1
    """Trials that share a node, each with its part of the GPUs and CPUs."""
    at_once: int | None = None
    """Concurrent trials; default: as many as fit into the cluster at the start. More wait for new nodes."""
    space: tuple[str, ...] = ()
    """NAME=LOW:HIGH, NAME=A,B or NAME=VALUE for fields of the recipe (by the names of their flags), or .json files."""
    points: str | None = None
    """A .json file with a list of {name: value}, tried before configurations are drawn."""
    sampler: Literal["random", "tpe"] = "random"
    """How Optuna draws configurations: uniformly, or near good ones (tree-structured Parzen estimator)."""
    metric: Metric = "psnr"
    """Metric on the validation split by which trials are compared."""
    grace_images: int | None = None
    """Images before a trial can be stopped (ASHA's first rung); default: a sixteenth of the budget."""
    reduction: int = 4
    """Of the trials at a rung (grace, grace x reduction, ...) one in this many continues."""
    retry_failed: bool = False
    """Retry failed trials."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_name("search")
        for name in ("trials", "nodes_per_trial", "trials_per_node", "at_once", "grace_images"):
            self.at_least_one(name)
        if self.nodes_per_trial > 1 and self.trials_per_node > 1:
            raise InputError(
                f"--nodes-per-trial {self.nodes_per_trial} with --trials-per-node {self.trials_per_node}: a trial has "
                "either several nodes or a part of one; leave one of the two at 1"
            )
        if self.reduction < 2:
            raise InputError(f"--reduction is {self.reduction}; it must be at least 2")

    @property
    def placement(self) -> Placement:
        """Where the ranks of one trial go."""
        return Placement(
            nodes=self.nodes_per_trial,
            ranks_per_node=self.ranks_per_node,
            groups_per_node=self.trials_per_node,
            wait_s=self.wait_s,
            shared_cluster=True,
            flags=("--nodes-per-trial",),
        )

    def of_trial(self, run: str, recipe: Recipe) -> TrainSettings:
        """The same settings for the training of one trial."""
        shared = {field.name: getattr(self, field.name) for field in fields(SharedSettings)}
        return TrainSettings(**shared | {"run": run, "nodes": self.nodes_per_trial, "check": False, "recipe": recipe})
