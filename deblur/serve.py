"""Serves the web app that removes blur: python -m deblur.serve [--model runs/RUN]

The page is at http://127.0.0.1:8000; programs POST a picture and get it restored:
  curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/restore > restored.jpg
Replicas scale with the load, up to one per GPU. Nothing is stored. On a cluster k8s/rayservice.yaml does the same.
Needs Ray Serve: pip install -e '.[serve]'
"""

import contextlib
import logging
import math
import os
import signal
import time
from dataclasses import dataclass

import tyro

from cluster.errors import InputError, one_line_errors
from deblur.app.replica import Service, application, build_application
from deblur.models.names import EMBEDDED

__all__ = ["application"]  # the import_path of the Serve configuration in k8s/rayservice.yaml


@dataclass(frozen=True, kw_only=True)
class Settings(Service):
    """Settings of the replicas and of the HTTP server on this machine."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. There is no authentication: put a gateway with it in front."""
    port: int = 8000
    """Port to listen on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.port < 65536:
            raise InputError(f"--port is {self.port}; it must be between 1 and 65535")


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.serve")
        _serve(settings)


def _serve(settings: Settings) -> None:
    import torch  # after the flags: it takes seconds

    from deblur.models.trained import absolute_model, load_model, pick_device

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    gpus = torch.cuda.device_count() if pick_device(settings.device).type == "cuda" else 0
    load_model(settings.model, torch.device("cpu"))  # fails here, in one line, instead of in every replica
    try:
        from cluster.on_ray.serve import served
    except ImportError as error:
        raise InputError(f"Ray Serve is not installed ({error}): pip install -e '.[serve]'") from error
    cpus, replicas = os.cpu_count() or 1, settings.max_replicas or gpus or 1
    service = Service(
        model=absolute_model(settings.model),
        device=settings.device,
        max_replicas=replicas,
        max_megapixels=settings.max_megapixels,
        metrics_port=settings.metrics_port,
    )
    app = build_application(service, cpus=max(1, cpus // replicas), gpus=1 / math.ceil(replicas / gpus) if gpus else 0)
    with contextlib.suppress(KeyboardInterrupt), served(app, settings.host, settings.port, max(cpus, replicas)):
        for number in (signal.SIGTERM, signal.SIGINT):  # Ray handles SIGTERM; background jobs of a script ignore SIGINT
            signal.signal(number, signal.default_int_handler)
        model = "the model inside this package" if settings.model == EMBEDDED else settings.model
        print(f"serving {model} on http://{settings.host}:{settings.port}; stop with Ctrl-C", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
