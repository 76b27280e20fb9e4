"""A web application in replicas under Ray Serve, on this machine or from a cluster's Serve configuration."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from cluster import gate
from cluster.errors import InputError
from cluster.on_ray import internals

ONGOING = 16  # requests at a replica; more wait in the proxy
QUEUED = 64  # requests that wait in each proxy; more are rejected
TARGET = 4  # requests per replica; above it another replica is started, up to max_replicas
APP = "app"


class Web(Protocol):
    """The application of one replica."""

    app: gate.Application

    def check(self) -> None:
        """Raises if the process has to be restarted."""


@serve.deployment(
    max_ongoing_requests=ONGOING,
    max_queued_requests=QUEUED,
    backpressure_config=BackpressureConfig(retry_after_s=gate.Limits.retry_after_s),
    health_check_period_s=5,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=20,
)
@serve.ingress()
class Replica(internals.LateIngress):
    """One process of the application."""

    def __init__(self, make: Callable[..., Web], arguments: dict[str, Any]) -> None:
        self._web = make(**arguments)
        self.asgi_app = self._web.app

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica if it raises."""
        self._web.check()


def application(
    name: str,
    make: Callable[..., Web],
    arguments: dict[str, Any],
    *,
    max_replicas: int,
    cpus: float,
    gpus: float,
) -> serve.Application:
    """The deployment `name`: `make(**arguments)` in each of up to `max_replicas`, scaled with the load."""
    app: serve.Application = Replica.options(  # type: ignore[attr-defined]
        name=name,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=1, max_replicas=max_replicas, target_ongoing_requests=TARGET, upscale_delay_s=10
        ),
    ).bind(make, arguments)
    return app


@contextlib.contextmanager
def served(app: serve.Application, host: str, port: int, cpus: int) -> Iterator[None]:
    """Serves an application on this machine, with a Ray of its own, for the duration of the context.

    Raises InputError if the port is not available, RuntimeError if no replica can be started.
    """
    os.environ[internals.PROXY_MIDDLEWARES] = f"{gate.__name__}:{gate.middlewares.__name__}"
    gate.Limits.of_environment()  # raises here what would end every proxy
    _check_free(host, port)
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=True)
    try:
        logs = LoggingConfig(log_level="WARNING", enable_access_log=False)  # else one line per request
        options = HTTPOptions(host=host, port=port)
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=options, logging_config=logs)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.run(app, name=APP, logging_config=logs)
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise InputError(
                f"--host {host} --port {port}: cannot listen ({error.strerror}); choose another"
            ) from error
