"""The service as users start it: `python -m deblur.serve`, with Ray Serve, on a free port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from deblur.config import presets, recipes
from deblur.config.recipes import GeneratorRecipe
from deblur.models.build import build_generator
from tests.servers import wait_until_it_answers

REPOSITORY = Path(__file__).parents[1]
START_S = 120
_METRICS = 100  # offset of the metrics ports from the port of the service


def write_model(path: Path) -> Path:
    """A small generator with InstanceNorm and random weights, which change a picture visibly."""
    recipe = replace(presets.paper(), generator=GeneratorRecipe(filters=4, blocks=2, dropout=0.0))
    torch.manual_seed(0)
    weights = build_generator(recipe).state_dict()
    path.write_bytes(safetensors.torch.save(weights, metadata={"recipe": recipes.to_json(recipe)}))
    return path


@contextlib.contextmanager
def running_service(model: Path | None, log: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """The address of a service that runs for the duration of the context; without a model, of the embedded one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deblur.serve", "--port", str(port), *arguments]
    command += ["--metrics-port", str(port + _METRICS), *(["--model", str(model)] if model else [])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/readyz", process, START_S)
        yield f"http://127.0.0.1:{port}"
    except (AssertionError, TimeoutError) as error:
        error.add_note(log.read_text())
        raise
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, log.read_text()


def metrics_address(service: str) -> str:
    """The URL of the metrics of the first replica."""
    return f"http://127.0.0.1:{int(service.rpartition(':')[2]) + _METRICS + 1}/metrics"
