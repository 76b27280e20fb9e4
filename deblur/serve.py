"""Serves the app that removes blur: python -m deblur.serve --model runs/RUN

The page is at http://127.0.0.1:8000; programs send a picture and get the restored one:
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/restore > restored.jpg
Replicas are started and ended with the load, one for each GPU at most. Nothing is stored. k8s/rayservice.yaml serves on
a cluster. Needs Ray Serve: pip install 'deblur[serve]'
"""

import atexit
import contextlib
import dataclasses
import logging
import math
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import tyro

from cluster import exporter
from cluster.errors import InputError, one_line_errors
from cluster.gate import Limits
from cluster.storage import absolute
from deblur.data.pictures import MAX_PIXELS
from deblur.inference.generator import load_model, pick_device
from deblur.telemetry import SERVICE

if TYPE_CHECKING:
    from deblur.web import Web

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


@dataclass(frozen=True, kw_only=True)
class Settings(Service):
    """The same on this machine."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all. There is no password: let a gateway ask for it."""
    port: int = 8000
    """Port to listen at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.port < 65536:
            raise InputError(f"--port is {self.port}; it must lie between 1 and 65535")


def web(model: str, device: str, max_megapixels: float, metrics_port: int) -> "Web":
    """The application of one replica."""
    from deblur.web import Web  # needs the extra `serve`, as whatever starts it

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
    return _application(Service(**args), cpus=1, gpus=0)


def _application(service: Service, cpus: float, gpus: float) -> Any:
    from cluster.on_ray.serve import application as served_application  # needs Ray

    arguments = dataclasses.asdict(service)
    max_replicas = arguments.pop("max_replicas") or 1
    return served_application(DEPLOYMENT, web, arguments, max_replicas=max_replicas, cpus=cpus, gpus=gpus)


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.serve")
        _serve(settings)


def _serve(settings: Settings) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    gpus = torch.cuda.device_count() if pick_device(settings.device).type == "cuda" else 0
    load_model(settings.model, torch.device("cpu"))  # says here, in one line, what every replica would say
    try:
        from cluster.on_ray.serve import served
    except ImportError as error:
        raise InputError(f"Ray Serve is not installed ({error}): pip install 'deblur[serve]'") from error
    cpus, replicas = os.cpu_count() or 1, settings.max_replicas or gpus or 1
    service = Service(
        model=absolute(settings.model),
        device=settings.device,
        max_replicas=replicas,
        max_megapixels=settings.max_megapixels,
        metrics_port=settings.metrics_port,
    )
    app = _application(service, cpus=max(1, cpus // replicas), gpus=1 / math.ceil(replicas / gpus) if gpus else 0)
    with contextlib.suppress(KeyboardInterrupt), served(app, settings.host, settings.port, max(cpus, replicas)):
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has its own for the first; a script may ignore the second
            signal.signal(number, signal.default_int_handler)
        print(f"the app is at http://{settings.host}:{settings.port}; Ctrl-C ends it", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    # Ray sends functions by the name of their module, which for the running script would be __main__.
    from deblur.serve import main as imported_main

    imported_main()
