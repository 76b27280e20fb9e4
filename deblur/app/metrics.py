"""The metrics of a replica."""

from cluster.exporter import Declared

# What each replica of the service says of itself. All series have the label replica. How long requests take, and how
# many the proxies refuse, Ray Serve tells (serve_*).
SERVICE = (
    Declared("deblur_service_requests_total", "counter", "Requests to restore, by the answer's status.", ("status",)),
    Declared("deblur_service_running", "gauge", "Requests that have come and are not answered."),
    Declared("deblur_service_pixels_total", "counter", "Pixels of the pictures that were restored."),
    Declared(
        "deblur_service_seconds_total",
        "counter",
        "Where the time of requests went: wait (for room in memory), decode, restore (with the wait for the device), "
        "encode.",
        ("part",),
    ),
    Declared("deblur_service_batches_total", "counter", "Batches that the device has computed."),
    Declared("deblur_service_pieces_total", "counter", "Pictures and tiles in them."),
)
