"""Settings of the service: invalid ones are rejected, valid ones reach Ray Serve."""

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
    ("values", "pattern"),
    [
        ({"max_replicas": 0}, "--max-replicas is 0"),
        ({"max_megapixels": 0.0}, "--max-megapixels is 0.0"),
        ({"metrics_port": 80}, "--metrics-port is 80;.* 1024"),
        ({"port": 0}, "--port is 0;.* 65535"),
        ({"port": 70_000}, "--port is 70000;.* 65535"),
    ],
)
def test_invalid_setting_is_rejected_naming_its_flag(values: dict[str, Any], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        Settings(model="m", **values)


def test_unknown_field_of_args_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'modell'.* model, device, max_replicas"):
        application({"modell": "s3://bucket/runs/r"})


def test_args_reach_the_replicas() -> None:
    made = application({"model": "s3://bucket/runs/r", "max_megapixels": 20.0, "max_replicas": 3})
    deployment = made._bound_deployment
    assert deployment.name == replica.DEPLOYMENT
    assert deployment.init_args[0] is replica.web
    expected = {"model": "s3://bucket/runs/r", "device": "auto", "max_megapixels": 20.0, "metrics_port": 9170}
    assert deployment.init_args[1] == expected
    config = deployment._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (1, 3)
    assert (config.max_ongoing_requests, config.max_queued_requests) == (serving.ONGOING, serving.QUEUED)


def test_missing_model_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.safetensors"):
        serve._serve(Settings(model=str(tmp_path / "nothing.safetensors")))


def test_port_in_use_is_an_error_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(InputError, match=rf"--port {port}: .*Address already in use"),
            serving.served(application({"model": "m"}), "127.0.0.1", port, 1),
        ):
            pass
