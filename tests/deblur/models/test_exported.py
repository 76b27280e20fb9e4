"""Exported generators: small files, and ONNX that gives what the generator gives."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cluster.errors import InputError
from deblur.config import recipes
from deblur.config.recipes import GeneratorRecipe, Recipe
from deblur.models import exported
from deblur.models.build import build_generator
from deblur.models.exported import export
from deblur.models.names import EMBEDDED
from deblur.models.trained import load_model
from deblur.models.weights import encode_generator

CPU = torch.device("cpu")
LEVELS = {"filters": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
GENERATORS = {
    "resnet-instance": GeneratorRecipe(filters=4, blocks=1),
    "resnet-batch": GeneratorRecipe(filters=4, blocks=1, norm="batch", output="mean"),
    "unet": GeneratorRecipe(architecture="unet", filters=4),
    "fast-unet": GeneratorRecipe(architecture="fast-unet", **LEVELS),
}


def file_of(folder: Path, generator: GeneratorRecipe, scale: float = 0.05) -> Path:
    """A generator.safetensors whose last layers do something."""
    torch.manual_seed(0)
    recipe = Recipe(generator=generator)
    network = build_generator(recipe)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, scale)
    path = folder / "generator.safetensors"
    path.write_bytes(encode_generator(network.state_dict(), recipe))
    return path


def pictures() -> list[torch.Tensor]:
    """Of other sizes than those that the export compares."""
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, *size, generator=draw) * 2 - 1 for size in ((33, 50), (128, 128), (70, 201))]


def test_a_safetensors_file_is_half_as_large_and_the_same_up_to_bfloat16(tmp_path: Path) -> None:
    source, out = file_of(tmp_path, GENERATORS["fast-unet"]), tmp_path / "small.safetensors"
    export(str(source), str(out))
    assert out.stat().st_size < 0.6 * source.stat().st_size
    whole, rounded = (load_model(str(path), CPU).state_dict() for path in (source, out))
    for name, tensor in whole.items():
        assert torch.equal(rounded[name], tensor.bfloat16().float())


SLOW = {"resnet-instance", "resnet-batch", "unet"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in SLOW else name for name in GENERATORS]
)
def test_onnxruntime_gives_what_the_generator_gives(name: str, tmp_path: Path) -> None:
    source, out = file_of(tmp_path, GENERATORS[name]), tmp_path / "g.onnx"
    assert export(str(source), str(out)).startswith(f"{out}: ")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    generator = load_model(str(source), CPU)
    for picture in pictures():
        with torch.inference_mode():
            expected = generator(picture).numpy()
        assert np.abs(expected - picture.numpy()).max() > 0.01
        np.testing.assert_allclose(session.run(["restored"], {"blurred": picture.numpy()})[0], expected, atol=2e-3)


def test_an_onnx_file_has_its_recipe_opset_and_open_sizes(tmp_path: Path) -> None:
    export(str(file_of(tmp_path, GENERATORS["fast-unet"])), str(tmp_path / "small.onnx"), opset=18)
    file = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(file, full_check=True)
    properties = {one.key: one.value for one in file.metadata_props}
    assert recipes.from_json(properties["recipe"], "onnx").generator.architecture == "fast-unet"
    assert [one.version for one in file.opset_import if not one.domain] == [18]
    (blurred,) = file.graph.input
    batch, channels, height, width = blurred.type.tensor_type.shape.dim
    assert channels.dim_value == 3
    assert all(size.dim_param for size in (batch, height, width))


@pytest.mark.parametrize(
    ("out", "opset", "message"),
    [("g.pth", 20, r"--out .*g\.pth: the name must end in"), ("g.onnx", 9, "--opset 9"), ("g.onnx", 99, "--opset 99")],
)
def test_unknown_formats_are_refused(out: str, opset: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export(EMBEDDED, str(tmp_path / out), opset)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    source = file_of(tmp_path, GENERATORS["fast-unet"])
    with pytest.raises(InputError, match=r"ONNX needs more packages .*onnxruntime.*\[onnx\]"):
        export(str(source), str(tmp_path / "g.onnx"))


def test_the_embedded_model_is_refused_as_its_estimates_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"deconvolution-unet cannot be exported to ONNX.*\.safetensors"):
        export(EMBEDDED, str(tmp_path / "g.onnx"))
    assert not list(tmp_path.iterdir())


def test_a_network_that_differs_at_other_sizes_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(nn.Module):
        def forward(self, blurred: torch.Tensor) -> torch.Tensor:
            return -blurred if blurred.shape[-2] < 40 else blurred

    monkeypatch.setattr(exported, "build_model", lambda *_: Branching().eval())
    with pytest.raises(InputError, match=r"differs by .* at 30x80 pixels"):
        export(EMBEDDED, str(tmp_path / "g.onnx"))
    assert not list(tmp_path.iterdir())


def test_a_network_that_depends_on_values_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deciding(nn.Module):
        def forward(self, blurred: torch.Tensor) -> torch.Tensor:
            return -blurred if blurred.sum() > 0 else blurred

    monkeypatch.setattr(exported, "build_model", lambda *_: Deciding().eval())
    with pytest.raises(InputError, match="cannot be exported to ONNX") as refused:
        export(EMBEDDED, str(tmp_path / "g.onnx"))
    assert "\n" not in str(refused.value)


@pytest.mark.soak
def test_a_nafnet_is_refused_as_its_local_means_cannot_be_exported(tmp_path: Path) -> None:
    source = file_of(tmp_path, GeneratorRecipe(architecture="nafnet", **LEVELS), scale=0.3)
    with pytest.raises(InputError, match=r"differs by .* at 30x464 pixels"):
        export(str(source), str(tmp_path / "g.onnx"))
