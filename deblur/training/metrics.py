"""The metrics of a run for Prometheus: one table, and which field of a report is which series."""

from collections.abc import Mapping
from typing import Any

from cluster.exporter import Metrics, MetricSpec

# All series have the labels run and rank; the driver's own have rank="driver".
TABLE = (
    # Of each rank.
    MetricSpec("deblur_images_total", "counter", "Images that this rank has trained on since it started."),
    MetricSpec("deblur_updates_total", "counter", "Updates that this rank has taken part in since it started."),
    MetricSpec(
        "deblur_update_seconds_total",
        "counter",
        "Where this rank's time went: data (waiting for a batch), critic, generator, validation, sync (sync points, "
        "reports, handing over a checkpoint). On a GPU, data, critic and generator are GPU time.",
        ("part",),
    ),
    MetricSpec("deblur_read_bytes_total", "counter", "Bytes of the dataset that this rank has fetched from storage."),
    MetricSpec("deblur_storage_retries_total", "counter", "Requests for the dataset that were retried."),
    MetricSpec(
        "deblur_resumed_reads_total", "counter", "Reads of the dataset that were resumed after a lost connection."
    ),
    MetricSpec("deblur_bad_samples_total", "counter", "Samples that did not decode and were replaced."),
    MetricSpec(
        "deblur_device_memory_bytes",
        "gauge",
        "GPU memory of this rank: peak allocated so far, reserved.",
        ("kind",),
    ),
    # Of the run, by rank 0.
    MetricSpec("deblur_images_seen", "gauge", "Progress of the run in images, over all ranks."),
    MetricSpec("deblur_images_wanted", "gauge", "Length of the run in images."),
    MetricSpec("deblur_epoch", "gauge", "Whole epochs seen."),
    MetricSpec(
        "deblur_loss",
        "gauge",
        "Mean over the last report interval, unweighted: content, pixel, frequency, adversarial, penalty, and "
        "wasserstein, the critic's estimate.",
        ("term",),
    ),
    MetricSpec(
        "deblur_critic_score",
        "gauge",
        "Mean score that the critic gives to sharp and to restored pictures.",
        ("picture",),
    ),
    MetricSpec(
        "deblur_gradient_norm",
        "gauge",
        "Mean norm of the whole gradient of the generator and the critic.",
        ("network",),
    ),
    MetricSpec("deblur_learning_rate", "gauge", "Of the generator and the critic.", ("network",)),
    MetricSpec(
        "deblur_nonfinite_updates_total",
        "counter",
        "Updates skipped since the start because of gradients that were not finite.",
    ),
    MetricSpec(
        "deblur_validation_psnr_decibels",
        "gauge",
        "PSNR of the validation split, restored and blurred.",
        ("picture",),
    ),
    MetricSpec("deblur_validation_ssim", "gauge", "SSIM of the validation split, restored and blurred.", ("picture",)),
    MetricSpec("deblur_checkpoints_total", "counter", "Checkpoints committed since the start."),
    MetricSpec(
        "deblur_checkpoint_failures_total",
        "counter",
        "Checkpoint uploads that failed, and damaged checkpoints found at the start.",
    ),
    MetricSpec(
        "deblur_checkpoint_timestamp_seconds", "gauge", "Unix time at which the newest checkpoint was committed."
    ),
    MetricSpec("deblur_checkpoint_upload_seconds", "gauge", "Duration of the last checkpoint upload."),
    MetricSpec("deblur_checkpoint_bytes", "gauge", "Size of the last checkpoint."),
    MetricSpec("deblur_restarts_total", "counter", "Restarts of the run over its whole life."),
    MetricSpec(
        "deblur_updates_lost_total",
        "counter",
        "Updates repeated after restarts, over the run's whole life; as long as storage responds, all but those "
        "of the last 3 s before each failure.",
    ),
    MetricSpec(
        "deblur_preemption_notices_total",
        "counter",
        "Node preemption notices received over the run's whole life.",
    ),
    MetricSpec("deblur_ranks_present", "gauge", "World size: ranks that are training now."),
    MetricSpec("deblur_trial", "gauge", "1 for a trial of a search, which the search may stop early; else 0."),
    # By the driver.
    MetricSpec(
        "deblur_ranks_wanted", "gauge", "World size requested by --nodes; with --min-nodes the run may use fewer."
    ),
)

LOSSES = ("content", "pixel", "frequency", "adversarial", "wasserstein", "penalty")  # those not in use are 0
# Which field of a report is which series.
_SERIES: dict[str, tuple[str, ...]] = {
    "images_seen": ("deblur_images_seen",),
    "images_wanted": ("deblur_images_wanted",),
    "epoch": ("deblur_epoch",),
    **{
        term: ("deblur_loss", term)
        for term in ("content", "pixel", "frequency", "adversarial", "penalty", "wasserstein")
    },
    **{f"{picture}_score": ("deblur_critic_score", picture) for picture in ("sharp", "restored")},
    **{f"{network}_gradient_norm": ("deblur_gradient_norm", network) for network in ("generator", "critic")},
    **{f"{network}_lr": ("deblur_learning_rate", network) for network in ("generator", "critic")},
    "validation_psnr": ("deblur_validation_psnr_decibels", "restored"),
    "validation_blurred_psnr": ("deblur_validation_psnr_decibels", "blurred"),
    "validation_ssim": ("deblur_validation_ssim", "restored"),
    "validation_blurred_ssim": ("deblur_validation_ssim", "blurred"),
}
_NAMES = {spec.name for spec in TABLE}


def run_metrics(run: str, rank: str) -> Metrics:
    """The metrics of one rank of a run, or of its driver (rank "driver")."""
    return Metrics(TABLE, {"run": run, "rank": rank})


def full_names(values: Mapping[str, float]) -> dict[str, float]:
    """{"restarts": 1} as {"deblur_restarts_total": 1.0}: the metrics of what reports call by shorter names."""
    plain = {f"deblur_{key}": value for key, value in values.items()}
    return {name if name in _NAMES else f"{name}_total": value for name, value in plain.items()}


def publish(metrics: Metrics, report: Mapping[str, Any]) -> None:
    """Sets the metrics of a run from the newest report."""
    for key, (name, *labels) in _SERIES.items():
        if key in report:
            metrics.set(name, report[key], *labels)
    metrics.add("deblur_nonfinite_updates_total", report["nonfinite"])
