"""What can be known before a start: whether all nodes reach the data and the runs, and what would run."""

from cluster.on_ray.placement import Placement
from cluster.storage import join
from deblur.data.shards import INDEX, Index


def nodes_that_reach(data: str, runs: str, placement: Placement) -> list[str]:
    """Addresses of the nodes, each of which has read the dataset's index and read and written the runs' root.

    Raises InputError where one cannot, and where too few nodes come within the wait.
    """
    from cluster.on_ray.launch import check_nodes_can_access  # needs Ray

    return check_nodes_can_access(join(data, INDEX), runs, placement, "--data and --runs (DEBLUR_DATA, DEBLUR_RUNS)")


def summary(index: Index, data: str, run_url: str, images_seen: int, total: int, batch_size: int) -> str:
    """What would run, in a few lines."""
    begin = f"goes on from {images_seen:,}" if images_seen else "starts at 0"
    return "\n".join(
        [
            dataset_line(index, data),
            f"run      {run_url}: {begin} of {total:,} images, {total // batch_size:,} updates of {batch_size}",
        ]
    )


def dataset_line(index: Index, data: str) -> str:
    """What a dataset has, in one line."""
    splits = ", ".join(f"{split.num_samples:,} {name}" for name, split in index.splits.items())
    return f"dataset  {join(data, INDEX)}: {splits}; digest {index.digest[:8]}"
