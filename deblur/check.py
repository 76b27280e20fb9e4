"""What can be known before a start: whether all nodes reach the data and the runs, and what would run."""

from cluster.errors import InputError
from cluster.on_ray.placement import Placement
from cluster.storage import join, open_store, preflight
from deblur.data.shards import INDEX, Index


def nodes_that_reach(data: str, runs: str, placement: Placement) -> list[str]:
    """Addresses of the nodes, each of which has read the dataset's index and read and written the runs' root.

    Raises InputError where one cannot, and where too few nodes come within the wait.
    """
    return reached_by(join(data, INDEX), runs, placement, "--data and --runs (DEBLUR_DATA, DEBLUR_RUNS)")


def reached_by(readable: str, writable: str, placement: Placement, named: str) -> list[str]:
    """The same of any object and any root; `named` is what the user named them by."""
    from cluster.on_ray import launch  # needs Ray

    with preflight.marker(open_store(writable, preflight.ANSWER)) as key:
        answers = launch.everywhere(placement, preflight.look_around, readable, writable, key)
    for address, error in answers.items():
        if error:
            raise InputError(
                f"node {address}: {error}; {named} must name places that every node reaches and is allowed to use: "
                "s3://bucket/prefix, or a folder that all of them mount"
            )
    return sorted(answers)


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
