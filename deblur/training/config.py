"""The resolved config of a run, which every rank receives."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cluster.storage import Retry, join
from cluster.storage.cache import Cache
from cluster.storage.lease import Lease
from cluster.sync import Intervals
from deblur.config.recipes import Recipe
from deblur.data.dataset import Dataset, open_dataset
from deblur.models.trained import load_model
from deblur.models.vgg import Features, load_features


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run with nothing left open: no field is None, every place is absolute."""

    recipe: Recipe
    data: str
    """Root of the dataset."""
    runs: str
    """Root of all runs."""
    name: str
    """Of the run."""
    total_images: int
    """Length of the run: whole updates."""
    intervals: Intervals
    keep: int = 2
    """Checkpoints that are kept beside the best."""
    threads: int = 2
    """Threads per rank that decode pictures."""
    max_bad_share: float = 0.01
    """Share of samples that may fail to decode before the run fails."""
    vgg_weights: str = ""
    """File or s3:// URL; empty for torchvision's."""
    init_from: str = ""
    """Run or file whose generator the run starts from; empty for fresh weights, or to resume."""
    retry: Retry = field(default_factory=Retry)
    """How long to wait for storage that does not respond."""
    cache_dir: str = ""
    """Folder on each node for shards; empty for no cache."""
    cache_bytes: int = 0
    metrics_port: int = 0
    """Port of the driver's metrics; 0 for none."""

    @property
    def run_url(self) -> str:
        """The run's own folder or URL."""
        return join(self.runs, self.name)

    def open_dataset(self) -> Dataset:
        """The dataset, read through the node's cache if there is one."""
        dataset = open_dataset(self.data, self.retry)
        if not self.cache_dir:
            return dataset
        cache = Cache(dataset.store, self.cache_dir, self.cache_bytes, version=dataset.index.digest)
        return replace(dataset, cache=cache)

    def load_features(self, device: torch.device) -> Features | None:
        """See `features_of`."""
        features = features_of(self.recipe, self.vgg_weights or None)
        return features and features.to(device)

    def load_initial_weights(self) -> dict[str, Tensor] | None:
        """The generator's weights that the run starts from, if they are not fresh."""
        return load_model(self.init_from, torch.device("cpu")).state_dict() if self.init_from else None


def features_of(recipe: Recipe, weights: str | None) -> Features | None:
    """The VGG features of the content loss, on the CPU; None without that loss.

    Raises InputError if their weights cannot be loaded.
    """
    loss = recipe.loss
    return load_features(loss.features, loss.feature_weights, weights) if loss.content_weight else None


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What every rank of one worker group receives from the driver, as it is."""

    run: RunConfig
    lease: Lease
    """The right to write the run, renewed for each group: workers of an earlier group can no longer commit."""
    driver_metrics: str = ""
    """host:port of the driver's metrics; empty if it serves none."""
    is_trial: bool = False
    """Whether the run is a trial of a search."""
