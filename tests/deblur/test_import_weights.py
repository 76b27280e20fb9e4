"""python -m deblur.import_weights: published weights become a --model of the other commands."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import InputError
from deblur.inference.tiles import restore_picture
from deblur.models.maxim import Maxim
from deblur.models.published import import_weights
from deblur.models.trained import load_model
from tests.deblur.models.maxim_packages import flax_shapes, write_package


def test_an_imported_file_is_a_model_of_the_other_commands(tmp_path: Path) -> None:
    write_package(tmp_path / "package", dict(flax_shapes()))
    out = tmp_path / "models/maxim.safetensors"
    assert "22,207,605" in import_weights("maxim", str(tmp_path / "package"), str(out))
    model = load_model(str(out), torch.device("cpu"))
    assert isinstance(model, Maxim)
    picture = np.full((40, 30, 3), 128, np.uint8)
    assert restore_picture(model, picture, device="cpu").shape == picture.shape


def test_an_output_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"maxim\.pt"):
        import_weights("maxim", str(tmp_path), str(tmp_path / "maxim.pt"))


def test_the_command_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deblur.import_weights", "maxim", str(tmp_path), "--out", "m.safetensors"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert "package.json" in run.stderr
