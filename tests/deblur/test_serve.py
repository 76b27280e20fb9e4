"""What the service is told: refused in words where it makes no sense, and handed to Ray Serve as it was meant."""

import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError
from cluster.on_ray import serve as serving
from deblur import serve
from deblur.app import replica
from deblur.serve import Settings, application


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_replicas": 0}, "--max-replicas is 0; it must be at least 1"),
        ({"max_megapixels": 0.0}, "--max-megapixels is 0.0; it must be above 0, and at most 64"),
        ({"max_megapixels": 65.0}, "--max-megapixels is 65.0; it must be above 0, and at most 64"),
        ({"metrics_port": 80}, "--metrics-port is 80; it must lie between 1024"),
        ({"port": 0}, "--port is 0; it must lie between 1 and 65535"),
        ({"port": 70_000}, "--port is 70000; it must lie between 1 and 65535"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(model="m", **values)


def test_an_argument_of_the_configuration_that_is_unknown_is_refused_with_those_that_are_not() -> None:
    with pytest.raises(InputError, match="args has 'modell'; it may have model, device, max_replicas"):
        application({"modell": "s3://bucket/runs/r"})


def test_what_the_configuration_says_reaches_the_replicas() -> None:
    made = application({"model": "s3://bucket/runs/r", "max_megapixels": 20.0, "max_replicas": 3})
    deployment = made._bound_deployment
    assert deployment.name == replica.DEPLOYMENT
    assert deployment.init_args[0] is replica.web
    told = {"model": "s3://bucket/runs/r", "device": "auto", "max_megapixels": 20.0, "metrics_port": 9170}
    assert deployment.init_args[1] == told
    config = deployment._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (1, 3)
    assert (config.max_ongoing_requests, config.max_queued_requests) == (serving.ONGOING, serving.QUEUED)


def test_a_model_that_cannot_be_had_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.safetensors: no such file"):
        serve._serve(Settings(model=str(tmp_path / "nothing.safetensors")))


def test_a_port_that_is_taken_is_said_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=rf"--port {port}: cannot be listened at \(Address already in use"),
            serving.served(application({"model": "m"}), "127.0.0.1", port, 1),
        ):
            pass
