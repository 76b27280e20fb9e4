"""The settings and the construction of a replica. Imports Ray only to build an application of Ray Serve."""

import atexit
import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster import exporter
from cluster.errors import InputError
from cluster.gate import Limits
from deblur.app.metrics import SERVICE
from deblur.models.names import EMBEDDED

if TYPE_CHECKING:
    from deblur.app.web import Web


DEPLOYMENT = "Restorer"
_until_exit = contextlib.ExitStack()
atexit.register(_until_exit.close)  # before threads end: it waits for that of the metrics server


@dataclass(frozen=True, kw_only=True)
class Service:
    """Settings of each replica; on a cluster `args` of the Serve configuration."""

    model: str = EMBEDDED
    """A run (folder or s3:// URL), which gives its best checkpoint at the start of a replica, one of its checkpoints/N
    folders, or a generator.safetensors; default: the model inside this package."""
    device: str = "auto"
    """cpu or cuda; auto is a GPU if there is one."""
    max_replicas: int | None = None
    """Maximum number of processes; by default one per GPU of this machine, or one."""
    max_megapixels: float = 64
    """Limit of one picture, and of all that a replica holds decoded; each takes about 30 MB of memory."""
    metrics_port: int = 9170
    """Replicas serve metrics to Prometheus on the ports that follow it; 0: none."""

    def __post_init__(self) -> None:
        if self.max_replicas is not None and self.max_replicas < 1:
            raise InputError(f"--max-replicas is {self.max_replicas}; it must be at least 1")
        if self.max_megapixels <= 0:
            raise InputError(f"--max-megapixels is {self.max_megapixels}; it must be greater than 0")
        exporter.check_port(self.metrics_port)


def web(model: str, device: str, max_megapixels: float, metrics_port: int) -> "Web":
    """The application of one replica."""
    from deblur.app.web import Web  # needs the extra `serve`
    from deblur.models.trained import load_model, pick_device  # here: flags are parsed before torch is imported

    chosen = pick_device(device)
    metrics = exporter.Metrics(SERVICE, {"replica": str(os.getpid())})
    made = Web(
        load_model(model, chosen),
        chosen,
        metrics,
        max_pixels=int(max_megapixels * 1e6),
        max_bytes=Limits.of_environment().body_bytes,
    )
    # The port itself is for a training driver on this machine.
    first_port = metrics_port and metrics_port + 1
    # Prometheus scrapes from elsewhere.
    _until_exit.enter_context(exporter.served(metrics, "0.0.0.0", first_port, own_port_s=0))  # noqa: S104
    return made


def application(args: dict[str, Any]) -> Any:
    """The `import_path` of a Serve configuration, whose `args` are fields of `Service`.

    Replicas and resources that the configuration gives for the deployment "Restorer" take precedence.
    """
    known = [field.name for field in dataclasses.fields(Service)]
    for name in sorted(args.keys() - set(known)):
        raise InputError(f"args has the unknown field {name!r}; known are {', '.join(known)}")
    return build_application(Service(**args), cpus=1, gpus=0)


def build_application(service: Service, cpus: float, gpus: float) -> Any:
    """The application, with the resources of each replica."""
    from cluster.on_ray.serve import application as served_application  # needs Ray Serve

    arguments = dataclasses.asdict(service)
    max_replicas = arguments.pop("max_replicas") or 1
    return served_application(DEPLOYMENT, web, arguments, max_replicas=max_replicas, cpus=cpus, gpus=gpus)
