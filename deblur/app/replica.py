"""What each replica of the app is told and made of. Imports Ray only where an application of Ray Serve is made."""

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
from deblur.data.pictures import MAX_PIXELS
from deblur.inference.generator import load_model, pick_device

if TYPE_CHECKING:
    from deblur.app.web import Web


DEPLOYMENT = "Restorer"
_as_long_as_the_process = contextlib.ExitStack()
atexit.register(_as_long_as_the_process.close)  # later, its server's thread is gone, and would be waited for


@dataclass(frozen=True, kw_only=True)
class Service:
    """What each replica is told; on a cluster `args` of the Serve configuration."""

    model: str
    """A run (folder or s3:// URL; its newest checkpoint when a replica starts), or a generator.safetensors."""
    device: str = "auto"
    """cpu, cuda; auto is a GPU where there is one."""
    max_replicas: int | None = None
    """Processes at most; else one per GPU of this machine, or one."""
    max_megapixels: float = MAX_PIXELS / 1e6
    """Largest picture, and the most that a replica decodes at once; takes about 30 MB of memory for each."""
    metrics_port: int = 9170
    """The ports behind it serve the replicas' metrics to Prometheus; 0: none are served."""

    def __post_init__(self) -> None:
        if self.max_replicas is not None and self.max_replicas < 1:
            raise InputError(f"--max-replicas is {self.max_replicas}; it must be at least 1")
        if not 0 < self.max_megapixels <= MAX_PIXELS / 1e6:
            raise InputError(
                f"--max-megapixels is {self.max_megapixels}; it must be above 0, and at most {MAX_PIXELS / 1e6:g}"
            )
        exporter.check_port(self.metrics_port)


def web(model: str, device: str, max_megapixels: float, metrics_port: int) -> "Web":
    """The application of one replica."""
    from deblur.app.web import Web  # needs the extra `serve`, as whatever starts it

    chosen = pick_device(device)
    numbers = exporter.Numbers(SERVICE, {"replica": str(os.getpid())})
    made = Web(
        load_model(model, chosen),
        chosen,
        numbers,
        max_pixels=int(max_megapixels * 1e6),
        max_bytes=Limits.of_environment().body_bytes,
    )
    # The port before is a driver's, where one trains on this machine.
    first_port = metrics_port and metrics_port + 1
    _as_long_as_the_process.enter_context(exporter.served(numbers, "0.0.0.0", first_port, own_port_s=0))
    return made


def application(args: dict[str, Any]) -> Any:
    """The `import_path` of a Serve configuration, with the fields of `Service` as `args`: a Serve application.

    The deployment is called "Restorer"; what the configuration says of it (replicas, resources) holds.
    """
    known = [field.name for field in dataclasses.fields(Service)]
    for name in sorted(args.keys() - set(known)):
        raise InputError(f"args has {name!r}; it may have {', '.join(known)}")
    return build_application(Service(**args), cpus=1, gpus=0)


def build_application(service: Service, cpus: float, gpus: float) -> Any:
    """The application with so much of a machine for each replica."""
    from cluster.on_ray.serve import application as served_application  # needs Ray Serve

    arguments = dataclasses.asdict(service)
    max_replicas = arguments.pop("max_replicas") or 1
    return served_application(DEPLOYMENT, web, arguments, max_replicas=max_replicas, cpus=cpus, gpus=gpus)
