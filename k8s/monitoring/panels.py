"""The dashboards' panels and their queries, from which dashboards.py generates Grafana's JSON.

A query's key is its legend, or its column name in tables and XY charts. Stat panels show the last value in the time
range, so a finished run still shows its result; panels of kind "now" are instant queries, empty while nothing trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `unit` is a Grafana unit id; `columns` maps a table's columns to theirs."""

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    minimum: float | None = None
    decimals: int | None = None
    log: bool = False
    stacked: bool = False
    thresholds: tuple[str | float, ...] = ("text",)
    """Colour, value, colour, ...: each value starts the next colour. Grafana's own default turns red at 80."""
    columns: Mapping[str, str] = field(default_factory=dict)


OVERVIEW = (
    Panel(
        title="Ranks",
        description="Ranks that are training, and the world size that --nodes requests. Good: equal. Fewer present: "
        "a node is missing, and the run continues if --min-nodes allows it. 0: the driver waits for nodes.",
        unit="none",
        kind="now",
        width=4,
        height=4,
        queries={
            "{{run}} present": 'max by (run) (deblur_ranks_present{run=~"$run"})'
            ' or 0 * max by (run) (deblur_ranks_wanted{run=~"$run"})',
            "{{run}} wanted": 'max by (run) (deblur_ranks_wanted{run=~"$run"})',
        },
    ),
    Panel(
        title="Images/s",
        description="Training throughput of all ranks. Good: steady, and close to the number of ranks times the "
        "throughput of one rank alone. 0 during a validation.",
        unit="short",
        kind="now",
        width=3,
        height=4,
        decimals=1,
        queries={"{{run}}": 'sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Progress",
        description="Images seen as a share of the run's total. Good: rising; a restart sets it back by at most the "
        "work since the last checkpoint.",
        unit="percentunit",
        kind="stat",
        width=3,
        height=4,
        decimals=1,
        queries={
            "{{run}}": 'max by (run) (deblur_images_seen{run=~"$run"})'
            ' / max by (run) (deblur_images_wanted{run=~"$run"})'
        },
    ),
    Panel(
        title="Time left",
        description="Estimated from the remaining images and the current throughput; future validations are not "
        "counted. Good: falls in real time. Empty while nothing trains.",
        unit="s",
        kind="now",
        width=3,
        height=4,
        queries={
            "{{run}}": '(max by (run) (deblur_images_wanted{run=~"$run"})'
            ' - max by (run) (deblur_images_seen{run=~"$run"}))'
            ' / (sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval])) > 0)'
        },
    ),
    Panel(
        title="Epoch",
        description="Completed epochs: how often each sample of the dataset was used. Good: rising.",
        unit="none",
        kind="stat",
        width=2,
        height=4,
        queries={"{{run}}": 'max by (run) (deblur_epoch{run=~"$run"})'},
    ),
    Panel(
        title="PSNR gain",
        description="PSNR of the restored validation images minus PSNR of the blurred inputs. Good: above 0 and "
        "rising. Below 0 the network makes images worse.",
        unit="dB",
        kind="stat",
        width=3,
        height=4,
        decimals=2,
        thresholds=("red", 0, "green"),
        queries={
            "{{run}}": 'max by (run) (deblur_validation_psnr_decibels{run=~"$run", picture="restored"})'
            ' - max by (run) (deblur_validation_psnr_decibels{run=~"$run", picture="blurred"})'
        },
    ),
    Panel(
        title="Checkpoint age",
        description="Time since the newest checkpoint was committed: the work that a failure now would lose. Good: "
        "at most --checkpoint-s (a minute) plus one upload. Rises during a validation.",
        unit="s",
        kind="now",
        width=3,
        height=4,
        thresholds=("green", 180, "orange", 600, "red"),
        queries={"{{run}}": 'time() - max by (run) (deblur_checkpoint_timestamp_seconds{run=~"$run"})'},
    ),
    Panel(
        title="Restarts",
        description="Restarts over the run's lifetime. Good: 0, or one per preempted node. "
        "If they follow each other closely, see the row Faults.",
        unit="none",
        kind="stat",
        width=3,
        height=4,
        thresholds=("green", 1, "orange"),
        queries={"{{run}}": 'max by (run) (deblur_restarts_total{run=~"$run"})'},
    ),
)

THROUGHPUT = (
    Panel(
        title="Images per second, all ranks",
        description="Training throughput of the run. Good: flat, with drops during validations and a gap at each "
        "restart. Twice the ranks should nearly double it.",
        unit="short",
        minimum=0,
        queries={"{{run}}": 'sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Images per second, by rank",
        description="Training throughput of each rank. Good: all lines coincide, as every update waits for all ranks. "
        "A line that ends is a rank that died or whose metrics cannot be scraped.",
        unit="short",
        minimum=0,
        queries={
            "{{run}} rank {{rank}}": "sum by (run, rank)"
            ' (rate(deblur_images_total{run=~"$run", rank=~"$rank"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Images seen",
        description="Progress and target of the run. Good: a straight line up to the target. A step down is work lost "
        "at a restart.",
        unit="short",
        minimum=0,
        queries={
            "{{run}} seen": 'max by (run) (deblur_images_seen{run=~"$run"})',
            "{{run}} wanted": 'max by (run) (deblur_images_wanted{run=~"$run"})',
        },
    ),
    Panel(
        title="Share of time by part",
        description="Where the ranks spend their time; each run stacks to 100 %. Good: nearly all in critic and "
        "generator. A large share of data: storage or decoding is too slow (--threads, --cache-dir).",
        unit="percentunit",
        minimum=0,
        stacked=True,
        queries={
            "{{run}} {{part}}": 'sum by (run, part) (rate(deblur_update_seconds_total{run=~"$run"}[$__rate_interval]))'
            ' / on (run) group_left () sum by (run) (rate(deblur_update_seconds_total{run=~"$run"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Seconds per update, by part",
        description="Duration of one update of both networks, averaged over ranks; validation and sync time is spread "
        "over updates. Good: flat. Critic and generator rise when ranks wait for each other or for the network.",
        unit="s",
        minimum=0,
        stacked=True,
        queries={
            "{{run}} {{part}}": 'sum by (run, part) (rate(deblur_update_seconds_total{run=~"$run"}[$__rate_interval]))'
            ' / on (run) group_left () (sum by (run) (rate(deblur_updates_total{run=~"$run"}[$__rate_interval])) > 0)'
        },
    ),
    Panel(
        title="Wait for data, by rank",
        description="Share of time each rank waits for its next batch. Good: near 0 and equal. One rank "
        "above the others stalls all of them: look at its node.",
        unit="percentunit",
        minimum=0,
        queries={
            "{{run}} rank {{rank}}": "sum by (run, rank) "
            '(rate(deblur_update_seconds_total{run=~"$run", rank=~"$rank", part="data"}[$__rate_interval]))'
        },
    ),
)

LOSS = (
    Panel(
        title="Content, pixel and frequency loss",
        description="Distance between restored and sharp images: in VGG features (content), in pixels and in "
        "Fourier coefficients (frequency). "
        "Unweighted; only the terms that the recipe uses. Good: falling, fast at first, then slowly.",
        unit="short",
        log=True,
        queries={"{{run}} {{term}}": 'max by (run, term) (deblur_loss{run=~"$run", term=~"content|pixel|frequency"})'},
    ),
    Panel(
        title="Adversarial terms",
        description="The critic's estimate of the distance between restored and sharp (wasserstein), the generator's "
        "loss (adversarial), and the gradient penalty. Good: wasserstein positive and slowly falling, a small "
        "penalty. An exploding penalty means that the critic diverges.",
        unit="short",
        queries={
            "{{run}} {{term}}": 'max by (run, term) (deblur_loss{run=~"$run", term=~"wasserstein|adversarial|penalty"})'
        },
    ),
    Panel(
        title="Critic score",
        description="The critic's mean scores of sharp and restored images, and their gap. Good: sharp "
        "above restored, a gap that stays finite and closes. A gap at 0 from the start: the critic learns nothing.",
        unit="short",
        queries={
            "{{run}} {{picture}}": 'max by (run, picture) (deblur_critic_score{run=~"$run"})',
            "{{run}} gap": 'max by (run) (deblur_critic_score{run=~"$run", picture="sharp"})'
            ' - max by (run) (deblur_critic_score{run=~"$run", picture="restored"})',
        },
    ),
    Panel(
        title="Gradient norms",
        description="Global gradient norm of each network. Good: within one order of magnitude after the first few "
        "hundred updates. Growth by orders of magnitude precedes non-finite updates.",
        unit="short",
        width=12,
        log=True,
        queries={"{{run}} {{network}}": 'max by (run, network) (deblur_gradient_norm{run=~"$run"})'},
    ),
    Panel(
        title="Learning rates",
        description="Learning rate of each network under the recipe's schedule. Good: constant in the first half of a "
        "run, then falling to 0, with no jump at a restart.",
        unit="sci",
        width=12,
        minimum=0,
        queries={"{{run}} {{network}}": 'max by (run, network) (deblur_learning_rate{run=~"$run"})'},
    ),
)

QUALITY = (
    Panel(
        title="Validation PSNR",
        description="PSNR of the restored images and of the blurred inputs. Good: restored above blurred and rising; "
        "changes at validations only. Falling over several validations: the network overfits or diverges.",
        unit="dB",
        width=12,
        decimals=2,
        queries={"{{run}} {{picture}}": 'max by (run, picture) (deblur_validation_psnr_decibels{run=~"$run"})'},
    ),
    Panel(
        title="Validation SSIM",
        description="Structural similarity, from 0 to 1. Good: restored above blurred and rising. Rising PSNR with "
        "falling SSIM means smooth rather than sharp images.",
        unit="none",
        width=12,
        decimals=4,
        queries={"{{run}} {{picture}}": 'max by (run, picture) (deblur_validation_ssim{run=~"$run"})'},
    ),
)

DATA = (
    Panel(
        title="Read from storage",
        description="Dataset bytes that all ranks read per second. Good: as steady as images per second; near 0 after "
        "the first epoch if --cache-dir holds the shards.",
        unit="Bps",
        width=6,
        minimum=0,
        queries={"{{run}}": 'sum by (run) (rate(deblur_read_bytes_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Retried requests",
        description="Retried dataset requests per second. Good: 0, or a few now and then. "
        "Many on all ranks: the store throttles or is down; on one rank: its node's network.",
        unit="cps",
        width=6,
        minimum=0,
        queries={
            "{{run}} rank {{rank}}": "sum by (run, rank)"
            ' (rate(deblur_storage_retries_total{run=~"$run", rank=~"$rank"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Resumed reads",
        description="Dataset reads per second that lost their connection and resumed at the byte they had reached. "
        "Good: near 0. They cost only time.",
        unit="cps",
        width=6,
        minimum=0,
        queries={
            "{{run}} rank {{rank}}": "sum by (run, rank)"
            ' (rate(deblur_resumed_reads_total{run=~"$run", rank=~"$rank"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Bad samples",
        description="Samples that failed to decode and were replaced by the previous one, since the ranks started. "
        "Good: 0. The log names each; beyond --max-bad-share the run fails.",
        unit="none",
        width=6,
        minimum=0,
        queries={"{{run}}": 'sum by (run) (deblur_bad_samples_total{run=~"$run"})'},
    ),
)

CHECKPOINTS = (
    Panel(
        title="Age of the newest checkpoint",
        description="The work that a failure at that moment would lose. Good: a sawtooth with the period "
        "--checkpoint-s. Missing teeth: uploads take too long or fail.",
        unit="s",
        width=5,
        minimum=0,
        queries={"{{run}}": 'time() - max by (run) (deblur_checkpoint_timestamp_seconds{run=~"$run"})'},
    ),
    Panel(
        title="Upload",
        description="Duration of the last upload, in the background. Good: seconds, and far below --checkpoint-s.",
        unit="s",
        width=5,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoint_upload_seconds{run=~"$run"})'},
    ),
    Panel(
        title="Size",
        description="Size of the newest checkpoint: networks and optimizers. Good: constant within a run.",
        unit="bytes",
        width=4,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoint_bytes{run=~"$run"})'},
    ),
    Panel(
        title="Committed",
        description="Checkpoints committed since the ranks started. Good: rises by one per --checkpoint-s and resets "
        "to 0 at a restart.",
        unit="none",
        width=5,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoints_total{run=~"$run"})'},
    ),
    Panel(
        title="Failures",
        description="Failed uploads, and checkpoints found corrupt, since the ranks started. "
        "Good: 0. The log names each; a corrupt checkpoint is replaced by the previous one.",
        unit="none",
        width=5,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoint_failures_total{run=~"$run"})'},
    ),
)

FAULTS = (
    Panel(
        title="Restarts and preemption notices",
        description="Restarts, and node preemption notices, over the run's lifetime. "
        "Good: flat. A restart without a notice is a crash, a lost node or a network failure.",
        unit="none",
        minimum=0,
        queries={
            "{{run}} restarts": 'max by (run) (deblur_restarts_total{run=~"$run"})',
            "{{run}} preemption notices": 'max by (run) (deblur_preemption_notices_total{run=~"$run"})',
        },
    ),
    Panel(
        title="Updates lost",
        description="Updates that had to be repeated, over the run's lifetime. Good: flat; each restart adds the "
        "updates since the last checkpoint, and none after a preemption notice.",
        unit="none",
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_updates_lost_total{run=~"$run"})'},
    ),
    Panel(
        title="Non-finite updates",
        description="Updates that all ranks skipped because a gradient was not finite, since the ranks started. Good: "
        "0. Five in a row fail the run.",
        unit="none",
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_nonfinite_updates_total{run=~"$run"})'},
    ),
    Panel(
        title="Ranks present and wanted",
        description="Good: the lines coincide. Present below wanted: the run continues on fewer nodes; a gap in "
        "present: no rank trains, and the driver waits for nodes or starts ranks.",
        unit="none",
        minimum=0,
        queries={
            "{{run}} present": 'max by (run) (deblur_ranks_present{run=~"$run"})',
            "{{run}} wanted": 'max by (run) (deblur_ranks_wanted{run=~"$run"})',
        },
    ),
    Panel(
        title="GPU memory",
        description="Peak allocated memory and reserved memory of each rank. Good: flat after the first validation. "
        "Growth ends in an out-of-memory error. Empty on CPUs.",
        unit="bytes",
        width=16,
        minimum=0,
        queries={
            "{{run}} rank {{rank}} {{kind}}": "max by (run, rank, kind)"
            ' (deblur_device_memory_bytes{run=~"$run", rank=~"$rank"})'
        },
    ),
)

TRIALS = (
    Panel(
        title="Trials",
        description="Best and latest values of each trial in the time range. Good: at the top, with a PSNR well above "
        "that of the blurred input. Compare trials that saw similar numbers of images. Click a trial to open it.",
        unit="none",
        kind="table",
        width=24,
        height=9,
        columns={"Best PSNR": "dB", "Images seen": "short", "Images/s": "short", "Content loss": "short"},
        queries={
            "Best PSNR": "max by (run)"
            ' (max_over_time(deblur_validation_psnr_decibels{run=~"$run", picture="restored"}[$__range]))',
            "Images seen": 'max by (run) (last_over_time(deblur_images_seen{run=~"$run"}[$__range]))',
            "Images/s": "avg_over_time("
            '(sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval])))[$__range:15s])',
            "Content loss": 'max by (run) (last_over_time(deblur_loss{run=~"$run", term="content"}[$__range]))',
        },
    ),
    Panel(
        title="PSNR over time",
        description="PSNR of the restored validation images. Good: early and high. Trials far below the best after "
        "the same time are those the search should stop.",
        unit="dB",
        width=12,
        height=9,
        decimals=2,
        queries={"{{run}}": 'max by (run) (deblur_validation_psnr_decibels{run=~"$run", picture="restored"})'},
    ),
    Panel(
        title="PSNR against images seen",
        description="The same by work done, so that slow or late trials compare with fast or early ones. "
        "Good: the highest curve. PSNR changes at validations only, hence the steps.",
        unit="dB",
        kind="xychart",
        width=12,
        height=9,
        columns={"Images seen": "short", "PSNR": "dB"},
        queries={
            "Images seen": 'max by (run) (deblur_images_seen{run=~"$run"})',
            "PSNR": 'max by (run) (deblur_validation_psnr_decibels{run=~"$run", picture="restored"})',
        },
    ),
    Panel(
        title="Images per second",
        description="Training throughput of each trial. Good: equal for trials on similar nodes with networks of the "
        "same size; a slower one shares its node or waits for data.",
        unit="short",
        width=6,
        minimum=0,
        queries={"{{run}}": 'sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Wasserstein estimate",
        description="The critic's estimate of the distance between restored and sharp images. Good: positive and "
        "slowly falling. Scales differ between recipes: compare shapes, not heights.",
        unit="short",
        width=6,
        queries={"{{run}}": 'max by (run) (deblur_loss{run=~"$run", term="wasserstein"})'},
    ),
    Panel(
        title="Critic score gap",
        description="The critic's mean score of sharp images minus that of restored ones. Good: above 0 and finite. "
        "At 0 the critic learns nothing; if it grows without bound, the critic diverges.",
        unit="short",
        width=6,
        queries={
            "{{run}}": 'max by (run) (deblur_critic_score{run=~"$run", picture="sharp"})'
            ' - max by (run) (deblur_critic_score{run=~"$run", picture="restored"})'
        },
    ),
    Panel(
        title="Non-finite updates",
        description="Updates skipped since the trial's ranks started. Good: 0. If they rise, the trial's learning "
        "rates are too high.",
        unit="none",
        width=6,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_nonfinite_updates_total{run=~"$run"})'},
    ),
)


def _latency_ms(quantile: float) -> str:
    """Query: the latency quantile of restored images, in milliseconds."""
    buckets = (
        'ray_serve_http_request_latency_ms_bucket{namespace=~"$namespace", route="/restore", status_code="200"}'
        "[$__rate_interval]"
    )
    return f"histogram_quantile({quantile}, sum by (namespace, le) (rate({buckets})))"


SERVICE = (
    Panel(
        title="Images per second",
        description="Images restored by all replicas. Good: as many as clients send; see *Responses by status* for "
        "the others.",
        unit="short",
        minimum=0,
        queries={
            "{{namespace}}": "sum by (namespace)"
            ' (rate(deblur_service_requests_total{namespace=~"$namespace", status="200"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Megapixels per second",
        description="Megapixels of these images: the work done by the devices, as images differ in size. "
        "Good: follows the load; flat while requests queue means that the replicas are saturated.",
        unit="short",
        minimum=0,
        queries={
            "{{namespace}}": "sum by (namespace)"
            ' (rate(deblur_service_pixels_total{namespace=~"$namespace"}[$__rate_interval])) / 1e6'
        },
    ),
    Panel(
        title="Responses by status",
        description="Responses of Ray Serve's proxies to /restore. Good: almost only 200. 4xx: images that cannot be "
        "processed. 503: the queue was full. 500: a replica died, and the client got 503. 499: the client left, "
        "or got 503 after GATE_ANSWER_S. Requests rejected earlier by upload limits (413, 408) are not counted.",
        unit="reqps",
        minimum=0,
        queries={
            "{{namespace}} {{status_code}}": "sum by (namespace, status_code) (rate("
            'ray_serve_num_http_requests_total{namespace=~"$namespace", route="/restore"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Latency of restored images",
        description="From the complete request body to the response, as measured by the proxies, for status 200. "
        "Interpolated between Ray Serve's buckets (1, 2, 5, 10, 60 s and so on). Good: flat, and p99 below "
        "GATE_ANSWER_S (120 s).",
        unit="ms",
        minimum=0,
        queries={
            "{{namespace}} p50": _latency_ms(0.5),
            "{{namespace}} p95": _latency_ms(0.95),
            "{{namespace}} p99": _latency_ms(0.99),
        },
    ),
    Panel(
        title="Share of time by part",
        description="Where replicas spend their time on restored images; each namespace stacks to 100 %. Good: nearly "
        "all in restore. Mostly wait: no memory for more decoded images; decode, encode: too few CPUs.",
        unit="percentunit",
        minimum=0,
        stacked=True,
        queries={
            "{{namespace}} {{part}}": "sum by (namespace, part)"
            ' (rate(deblur_service_seconds_total{namespace=~"$namespace"}[$__rate_interval]))'
            " / on (namespace) group_left () (sum by (namespace)"
            ' (rate(deblur_service_seconds_total{namespace=~"$namespace"}[$__rate_interval])) > 0)'
        },
    ),
    Panel(
        title="Pieces per batch",
        description="Images and tiles in one forward pass. Good: 1 while small images arrive one at a time, more "
        "under load. 1 under load: sizes differ and so cannot share a batch, or each piece fills one.",
        unit="short",
        minimum=0,
        queries={
            "{{namespace}}": "sum by (namespace)"
            ' (rate(deblur_service_pieces_total{namespace=~"$namespace"}[$__rate_interval]))'
            " / (sum by (namespace)"
            ' (rate(deblur_service_batches_total{namespace=~"$namespace"}[$__rate_interval])) > 0)'
        },
    ),
    Panel(
        title="Requests",
        description="Requests running in each replica (by metrics address and process), and requests queued in the "
        "proxies. Good: a few in each, evenly spread, none queued. A replica runs up to 16; each proxy queues up to "
        "64 and rejects more.",
        unit="none",
        minimum=0,
        queries={
            "{{instance}} {{replica}}": 'sum by (instance, replica) (deblur_service_running{namespace=~"$namespace"})',
            "{{namespace}} waiting": "sum by (namespace)"
            ' (ray_serve_deployment_queued_queries{namespace=~"$namespace", deployment="Restorer"})',
        },
    ),
    Panel(
        title="Replicas",
        description="Healthy replicas, and the number Ray Serve targets at this load. Good: the lines coincide. "
        "Healthy below wanted: a replica is starting, or no GPU is free for it. A gap: the head is down.",
        unit="none",
        minimum=0,
        queries={
            "{{namespace}} healthy": "sum by (namespace)"
            ' (ray_serve_deployment_replica_healthy{namespace=~"$namespace", deployment="Restorer"})',
            "{{namespace}} wanted": "sum by (namespace)"
            ' (ray_serve_autoscaling_target_replicas{namespace=~"$namespace", deployment="Restorer"})',
        },
    ),
    Panel(
        title="Rejected with 503",
        description="By proxies and replicas together, and by replicas alone: the difference was rejected because the "
        "queue was full or no replica was available. Good: 0. By replicas: the log has the error. Requests rejected "
        "because a proxy holds too many bytes (GATE_HELD_BYTES) are not counted.",
        unit="reqps",
        minimum=0,
        queries={
            "{{namespace}} all": "sum by (namespace) (rate(ray_serve_num_http_requests_total"
            '{namespace=~"$namespace", route="/restore", status_code="503"}[$__rate_interval]))'
            " or 0 * sum by (namespace) (rate(ray_serve_num_http_requests_total"
            '{namespace=~"$namespace", route="/restore"}[$__rate_interval]))',
            "{{namespace}} by replicas": "sum by (namespace)"
            ' (rate(deblur_service_requests_total{namespace=~"$namespace", status="503"}[$__rate_interval]))'
            " or 0 * sum by (namespace)"
            ' (rate(deblur_service_requests_total{namespace=~"$namespace"}[$__rate_interval]))',
        },
    ),
)

# last_over_time keeps the old process's count for up to an hour without ranks, and the new process reports a higher
# one: one short annotation per restart, wherever the new process serves its metrics.
RESTART = (
    'changes((max by (run) (last_over_time(deblur_restarts_total{run=~"$run"}[1h])))[$__rate_interval:15s]) > 0',
    {"name": "Restarts", "iconColor": "orange", "enable": True, "titleFormat": "{{run}} restarted"},
)
CHECKPOINT = (
    'max by (run) (deblur_checkpoint_timestamp_seconds{run=~"$run"}) * 1000',
    {
        "name": "Checkpoints",
        "iconColor": "blue",
        "enable": False,  # one a minute
        "titleFormat": "{{run}} committed a checkpoint",
        "useValueForTime": True,
    },
)
