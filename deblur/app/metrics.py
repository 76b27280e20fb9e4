"""The metrics of a replica."""

from cluster.exporter import MetricSpec

# Of each replica of the service, with the label replica. Latency, and what the proxies reject, are metrics of Ray Serve
# (serve_*).
SERVICE = (
    MetricSpec("deblur_service_requests_total", "counter", "Requests to restore, by the answer's status.", ("status",)),
    MetricSpec("deblur_service_running", "gauge", "Requests in progress."),
    MetricSpec("deblur_service_pixels_total", "counter", "Pixels of restored pictures."),
    MetricSpec(
        "deblur_service_seconds_total",
        "counter",
        "Time of requests by part: wait (for memory), decode, restore (with the wait for the device), encode.",
        ("part",),
    ),
    MetricSpec("deblur_service_batches_total", "counter", "Batches computed by the device."),
    MetricSpec("deblur_service_pieces_total", "counter", "Pictures and tiles in these batches."),
)
