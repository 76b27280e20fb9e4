"""Serves the app that removes blur: python -m deblur.serve --model runs/RUN

The page is at http://127.0.0.1:8000; programs send a picture and get the restored one:
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/restore > restored.jpg
Replicas are started and ended with the load, one for each GPU at most. Nothing is stored. k8s/rayservice.yaml serves on
a cluster. Needs Ray Serve: pip install -e '.[serve]'
"""

import contextlib
import logging
import math
import os
import signal
import time
from dataclasses import dataclass

import torch
import tyro

from cluster.errors import InputError, one_line_errors
from cluster.storage import absolute
from deblur.app.replica import Service, application, build_application
from deblur.inference.generator import load_model, pick_device

__all__ = ["application"]  # the import path of the Serve configuration in k8s/rayservice.yaml


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
        raise InputError(f"Ray Serve is not installed ({error}): pip install -e '.[serve]'") from error
    cpus, replicas = os.cpu_count() or 1, settings.max_replicas or gpus or 1
    service = Service(
        model=absolute(settings.model),
        device=settings.device,
        max_replicas=replicas,
        max_megapixels=settings.max_megapixels,
        metrics_port=settings.metrics_port,
    )
    app = build_application(service, cpus=max(1, cpus // replicas), gpus=1 / math.ceil(replicas / gpus) if gpus else 0)
    with contextlib.suppress(KeyboardInterrupt), served(app, settings.host, settings.port, max(cpus, replicas)):
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray has its own for the first; a script may ignore the second
            signal.signal(number, signal.default_int_handler)
        print(f"the app is at http://{settings.host}:{settings.port}; Ctrl-C ends it", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
