"""What the dashboards show: the panels and their queries. dashboards.py makes Grafana's JSON of it.

A query's legend is its key, in tables and XY charts the name of its column. Stat panels read the last value of the time
range, so that a finished run still shows what it reached; panels of kind "now" ask for this moment and are empty where
nothing trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. `unit` is an id of Grafana's; `columns` gives those of a table."""

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
    """A colour, the value from which there is another, that colour, ... Without any, Grafana turns red at 80."""
    columns: Mapping[str, str] = field(default_factory=dict)


OVERVIEW = (
    Panel(
        title="Ranks",
        description="Ranks that train, of those that --nodes asks for. Good: equal. Fewer present: a node is missing, "
        "and the run goes on with fewer where --min-nodes permits. 0: the driver waits for nodes or starts the ranks.",
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
        description="Images that all ranks together train on per second. Good: steady, and near ranks times what one "
        "rank reaches alone. 0 while a validation runs.",
        unit="short",
        kind="now",
        width=3,
        height=4,
        decimals=1,
        queries={"{{run}}": 'sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Progress",
        description="Images seen, of those that the whole run wants. Good: it grows; after a restart it falls by at "
        "most the work since the last checkpoint.",
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
        description="Images that are left, at the rate of this moment; validations to come are not counted. Good: it "
        "falls as the clock goes on. Empty while nothing trains.",
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
        description="Whole epochs seen: how often every sample of the dataset was used. Good: it grows.",
        unit="none",
        kind="stat",
        width=2,
        height=4,
        queries={"{{run}}": 'max by (run) (deblur_epoch{run=~"$run"})'},
    ),
    Panel(
        title="PSNR gain",
        description="PSNR of the restored validation pictures less that of the blurred ones as they came. Good: above "
        "0 and growing. Below 0 the network makes pictures worse.",
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
        description="Time since the newest checkpoint was committed: the work that a fault now would cost. Good: below "
        "--checkpoint-s (a minute) and one upload. It grows during a validation.",
        unit="s",
        kind="now",
        width=3,
        height=4,
        thresholds=("green", 180, "orange", 600, "red"),
        queries={"{{run}}": 'time() - max by (run) (deblur_checkpoint_timestamp_seconds{run=~"$run"})'},
    ),
    Panel(
        title="Restarts",
        description="Starts of the run after its first, over its whole life. Good: 0, or as many as nodes were taken. "
        "When they come one after another, see the row Faults.",
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
        description="What the whole run trains on. Good: a level line; it drops during validations and ends in a gap "
        "at a restart. With twice the ranks it should nearly double.",
        unit="short",
        minimum=0,
        queries={"{{run}}": 'sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Images per second, by rank",
        description="What each rank trains on. Good: all lines on one another, as every update waits for all ranks. A "
        "line that ends is a rank that died, or whose metrics nobody reaches.",
        unit="short",
        minimum=0,
        queries={
            "{{run}} rank {{rank}}": "sum by (run, rank)"
            ' (rate(deblur_images_total{run=~"$run", rank=~"$rank"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Images seen",
        description="How far the run is, and where it ends. Good: a straight line up to the wanted one. A step back is "
        "work that was lost at a restart.",
        unit="short",
        minimum=0,
        queries={
            "{{run}} seen": 'max by (run) (deblur_images_seen{run=~"$run"})',
            "{{run}} wanted": 'max by (run) (deblur_images_wanted{run=~"$run"})',
        },
    ),
    Panel(
        title="Share of time by part",
        description="Where the time of the ranks goes; every run stacks to 100 %. Good: nearly all of it in critic and "
        "generator. Much data: storage or decoding is too slow (--threads, --cache-dir).",
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
        description="What one update of both networks takes on the mean rank, validations and meetings shared out "
        "among updates. Good: level. Critic and generator grow where ranks wait for one another or for the network.",
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
        description="Share of its time for which a rank waits for its next batch. Good: near 0 and alike. One rank "
        "above the others makes all of them wait: look at its node.",
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
        title="Content and pixel loss",
        description="How far restored pictures are from sharp ones: in features of VGG (content) and in pixels. "
        "Unweighted; only those that the recipe uses. Good: falling, fast at first, then slowly.",
        unit="short",
        log=True,
        queries={"{{run}} {{term}}": 'max by (run, term) (deblur_loss{run=~"$run", term=~"content|pixel"})'},
    ),
    Panel(
        title="Adversarial terms",
        description="The critic's estimate of the distance between restored and sharp (wasserstein), the generator's "
        "part of it (adversarial), and the gradient penalty. Good: wasserstein positive and slowly falling, a small "
        "penalty. A penalty that explodes means that the critic diverges.",
        unit="short",
        queries={
            "{{run}} {{term}}": 'max by (run, term) (deblur_loss{run=~"$run", term=~"wasserstein|adversarial|penalty"})'
        },
    ),
    Panel(
        title="Critic score",
        description="The critic's mean score of sharp and of restored pictures, and the gap between them. Good: sharp "
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
        description="Norm of the whole gradient of each network. Good: of one order of magnitude after the first "
        "hundreds of updates. Growth by orders comes before updates that are not finite.",
        unit="short",
        width=12,
        log=True,
        queries={"{{run}} {{network}}": 'max by (run, network) (deblur_gradient_norm{run=~"$run"})'},
    ),
    Panel(
        title="Learning rates",
        description="What the schedule of the recipe gives each network. Good: level in the first half of a run, then "
        "falling to 0, and without a jump at a restart.",
        unit="sci",
        width=12,
        minimum=0,
        queries={"{{run}} {{network}}": 'max by (run, network) (deblur_learning_rate{run=~"$run"})'},
    ),
)

QUALITY = (
    Panel(
        title="PSNR of the validation split",
        description="Restored pictures, and the blurred ones as they came. Good: restored above blurred and rising; it "
        "moves at validations only. Falling for several of them: the network overfits or diverges.",
        unit="dB",
        width=12,
        decimals=2,
        queries={"{{run}} {{picture}}": 'max by (run, picture) (deblur_validation_psnr_decibels{run=~"$run"})'},
    ),
    Panel(
        title="SSIM of the validation split",
        description="Likewise the similarity of structure, from 0 to 1. Good: restored above blurred and rising. PSNR "
        "that rises while SSIM falls is smooth, not sharp.",
        unit="none",
        width=12,
        decimals=4,
        queries={"{{run}} {{picture}}": 'max by (run, picture) (deblur_validation_ssim{run=~"$run"})'},
    ),
)

DATA = (
    Panel(
        title="Read from storage",
        description="Bytes of the dataset that all ranks fetch per second. Good: as steady as images per second; near "
        "0 after the first epoch where --cache-dir holds the shards.",
        unit="Bps",
        width=6,
        minimum=0,
        queries={"{{run}}": 'sum by (run) (rate(deblur_read_bytes_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Retried requests",
        description="Requests for the dataset that had to be made again, per second. Good: 0, or a few now and then. "
        "Many on all ranks: the storage throttles or is gone; on one: its node's network.",
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
        description="Reads of the dataset that were cut and went on from the byte they had reached, per second. Good: "
        "near 0. Nothing is lost by them but time.",
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
        description="Samples that did not decode and were replaced by the one before, since the ranks started. Good: "
        "0. Each is named in the log; beyond --max-bad-share the run ends.",
        unit="none",
        width=6,
        minimum=0,
        queries={"{{run}}": 'sum by (run) (deblur_bad_samples_total{run=~"$run"})'},
    ),
)

CHECKPOINTS = (
    Panel(
        title="Age of the newest checkpoint",
        description="The work that a fault would cost at any moment. Good: a saw of --checkpoint-s. A saw that misses "
        "teeth: uploads take too long or fail.",
        unit="s",
        width=5,
        minimum=0,
        queries={"{{run}}": 'time() - max by (run) (deblur_checkpoint_timestamp_seconds{run=~"$run"})'},
    ),
    Panel(
        title="Upload",
        description="How long the last upload took, beside training. Good: seconds, and far below --checkpoint-s.",
        unit="s",
        width=5,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoint_upload_seconds{run=~"$run"})'},
    ),
    Panel(
        title="Size",
        description="Bytes of the newest checkpoint: networks and optimisers. Good: it never changes within a run.",
        unit="bytes",
        width=4,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoint_bytes{run=~"$run"})'},
    ),
    Panel(
        title="Committed",
        description="Checkpoints that were committed since the ranks started. Good: it climbs by one per "
        "--checkpoint-s, and begins at 0 again after a restart.",
        unit="none",
        width=5,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoints_total{run=~"$run"})'},
    ),
    Panel(
        title="Failures",
        description="Uploads that were given up, and checkpoints that were found damaged, since the ranks started. "
        "Good: 0. The log names each; the checkpoint before it is used.",
        unit="none",
        width=5,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_checkpoint_failures_total{run=~"$run"})'},
    ),
)

FAULTS = (
    Panel(
        title="Restarts and notices",
        description="Starts after the first, and notices that a node is going to be taken, over the run's whole life. "
        "Good: level. A restart without a notice is a crash, a lost node or a cut network.",
        unit="none",
        minimum=0,
        queries={
            "{{run}} restarts": 'max by (run) (deblur_restarts_total{run=~"$run"})',
            "{{run}} preemption notices": 'max by (run) (deblur_preemption_notices_total{run=~"$run"})',
        },
    ),
    Panel(
        title="Updates lost",
        description="Updates that had to be made again, over the run's whole life. Good: level; at each restart it "
        "climbs by the updates since the last checkpoint, after a notice by none.",
        unit="none",
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_updates_lost_total{run=~"$run"})'},
    ),
    Panel(
        title="Updates that were not finite",
        description="Updates that all ranks skipped because gradients were not finite, since the ranks started. Good: "
        "0. Five in a row end the run.",
        unit="none",
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_nonfinite_updates_total{run=~"$run"})'},
    ),
    Panel(
        title="Ranks present and wanted",
        description="Good: both lines are one. Present below wanted: the run goes on with fewer nodes; a gap in "
        "present: no rank trains, and the driver waits or starts them.",
        unit="none",
        minimum=0,
        queries={
            "{{run}} present": 'max by (run) (deblur_ranks_present{run=~"$run"})',
            "{{run}} wanted": 'max by (run) (deblur_ranks_wanted{run=~"$run"})',
        },
    ),
    Panel(
        title="GPU memory",
        description="Of each rank: allocated at most so far, and reserved from the device. Good: level after the first "
        "validation. Growth ends in an out-of-memory error. Empty on CPUs.",
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
        description="Each trial of the time range at its best and its last. Good: at the top, with a PSNR well above "
        "the blurred input's. Compare trials that saw alike many images. A click on a trial opens it alone.",
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
        description="PSNR of the restored validation pictures. Good: early and high. Trials far below the best after "
        "the same time are what the search should end.",
        unit="dB",
        width=12,
        height=9,
        decimals=2,
        queries={"{{run}}": 'max by (run) (deblur_validation_psnr_decibels{run=~"$run", picture="restored"})'},
    ),
    Panel(
        title="PSNR against images seen",
        description="The same against the work done, so that slow and late trials compare with fast and early ones. "
        "Good: the highest curve. PSNR moves at validations only, hence the steps.",
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
        description="What each trial trains on. Good: trials on like nodes with networks of one size are alike; one "
        "that is slower shares its node or waits for data.",
        unit="short",
        width=6,
        minimum=0,
        queries={"{{run}}": 'sum by (run) (rate(deblur_images_total{run=~"$run"}[$__rate_interval]))'},
    ),
    Panel(
        title="Wasserstein estimate",
        description="The critic's estimate of the distance between restored and sharp. Good: positive and slowly "
        "falling. Scales differ between recipes: compare shapes, not heights.",
        unit="short",
        width=6,
        queries={"{{run}}": 'max by (run) (deblur_loss{run=~"$run", term="wasserstein"})'},
    ),
    Panel(
        title="Critic score gap",
        description="The critic's mean score of sharp pictures less that of restored ones. Good: above 0 and finite. "
        "At 0 the critic learns nothing; without bounds it diverges.",
        unit="short",
        width=6,
        queries={
            "{{run}}": 'max by (run) (deblur_critic_score{run=~"$run", picture="sharp"})'
            ' - max by (run) (deblur_critic_score{run=~"$run", picture="restored"})'
        },
    ),
    Panel(
        title="Updates that were not finite",
        description="Updates skipped since the trial's ranks started. Good: 0. A trial where they climb has learning "
        "rates that are too high.",
        unit="none",
        width=6,
        minimum=0,
        queries={"{{run}}": 'max by (run) (deblur_nonfinite_updates_total{run=~"$run"})'},
    ),
)


def _answered_within(quantile: float) -> str:
    """The milliseconds within which so large a share of the pictures was answered."""
    buckets = (
        'ray_serve_http_request_latency_ms_bucket{namespace=~"$namespace", route="/restore", status_code="200"}'
        "[$__rate_interval]"
    )
    return f"histogram_quantile({quantile}, sum by (namespace, le) (rate({buckets})))"


SERVICE = (
    Panel(
        title="Pictures per second",
        description="Pictures that all replicas together restored. Good: as many as are sent; see *Answers by status* "
        "for those that were not.",
        unit="short",
        minimum=0,
        queries={
            "{{namespace}}": "sum by (namespace)"
            ' (rate(deblur_service_requests_total{namespace=~"$namespace", status="200"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Megapixels per second",
        description="Pixels of these pictures, in millions: what the devices have done, as pictures differ in size. "
        "Good: with the load; level while requests wait means that no more is to be had from these replicas.",
        unit="short",
        minimum=0,
        queries={
            "{{namespace}}": "sum by (namespace)"
            ' (rate(deblur_service_pixels_total{namespace=~"$namespace"}[$__rate_interval])) / 1e6'
        },
    ),
    Panel(
        title="Answers by status",
        description="What Ray Serve's proxies answered to requests to restore. Good: 200 nearly alone. 4xx: pictures "
        "that cannot be taken. 503: the queue was full. 500: a replica was lost, and the client told 503. 499: the "
        "client left, or was told 503 after GATE_ANSWER_S. What the limits refuse before (413, 408) is not counted.",
        unit="reqps",
        minimum=0,
        queries={
            "{{namespace}} {{status_code}}": "sum by (namespace, status_code) (rate("
            'ray_serve_num_http_requests_total{namespace=~"$namespace", route="/restore"}[$__rate_interval]))'
        },
    ),
    Panel(
        title="Time to a restored picture",
        description="From the whole body to the answer, as the proxies measure it, of pictures that were restored. "
        "Read off Ray Serve's buckets (1, 2, 5, 10, 60 s and so on), so a guess between two of them. Good: level, and "
        "the 99 % below GATE_ANSWER_S (120 s).",
        unit="ms",
        minimum=0,
        queries={
            "{{namespace}} half": _answered_within(0.5),
            "{{namespace}} 95 %": _answered_within(0.95),
            "{{namespace}} 99 %": _answered_within(0.99),
        },
    ),
    Panel(
        title="Share of time by part",
        description="Where the time of restored pictures goes within replicas; every namespace stacks to 100 %. Good: "
        "nearly all in restore. Much wait: no room for decoded pictures; decode, encode: too few CPUs.",
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
        description="Pictures and tiles that the device computes at once. Good: 1 while small pictures come alone, "
        "more under load. 1 under load: sizes differ and so share no batches, or each piece fills one.",
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
        description="That run in each replica (by the address of its metrics and its process), and that wait in the "
        "proxies for one. Good: a few in each and alike, none waiting. Replicas take 16 each; in each proxy 64 may "
        "wait, and more are refused.",
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
        description="Those that are healthy, and those that Ray Serve wants at this load. Good: both lines are one. "
        "Healthy below wanted: one is being started, or there is no free GPU for it. A gap: the head is gone.",
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
        title="Refused with 503",
        description="By proxies and replicas together, and by replicas alone: the difference was refused as the queue "
        "was full or no replica there. Good: 0. By replicas: the log has the error. What a proxy refuses as it holds "
        "too many bytes (GATE_HELD_BYTES) is not counted.",
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

# The old process's number is remembered for the hour in which no rank may train, and the new one's is higher: one short
# mark per restart, wherever the new process serves its metrics.
RESTART = (
    'changes((max by (run) (last_over_time(deblur_restarts_total{run=~"$run"}[1h])))[$__rate_interval:15s]) > 0',
    {"name": "Restarts", "iconColor": "orange", "enable": True, "titleFormat": "{{run}} started again"},
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
