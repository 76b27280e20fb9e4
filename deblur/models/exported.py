"""Trained generators as files: our own in bfloat16, and ONNX for other runtimes."""

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.storage import absolute, open_store
from deblur.config import recipes
from deblur.models.deconvolution_unet import DeconvolutionUNet
from deblur.models.nafnet import LocalMean
from deblur.models.trained import build_model, read_model, read_recipe
from deblur.models.weights import encode_generator

OPSETS = (18, 23)  # that torch's exporter writes
TOLERANCE = 2e-3  # of values in [-1, 1]: a thousandth of full scale
_INPUT, _OUTPUT = "blurred", "restored"


def export(model: str, out: str, opset: int = 20) -> str:
    """Writes the generator of `model` to `out`, in the format of its ending; returns a line that says so.

    .safetensors  the weights in bfloat16 and the recipe: a --model of every command
    .onnx         [B, 3, H, W] in [-1, 1] to the same in float32, any B, H and W; in this `opset`

    An ONNX file is run on several sizes and compared with the generator. Raises InputError, also where it differs.
    """
    folder, _, name = absolute(out).rpartition("/")
    if not name.endswith((".safetensors", ".onnx")):
        raise InputError(f"--out {out}: the name must end in .safetensors or .onnx")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise InputError(f"--opset {opset}: must lie between {OPSETS[0]} and {OPSETS[1]}")
    data = read_model(model)
    generator = build_model(data, model, torch.device("cpu"))
    recipe = read_recipe(data, model)
    if name.endswith(".onnx"):
        exported = _onnx(generator, {"recipe": recipes.to_json(recipe), "model": model}, opset)
    else:
        exported = encode_generator(generator.bfloat16().state_dict(), recipe)
    open_store(folder).put(name, exported)
    return f"{absolute(out)}: {len(exported) / 1e6:.1f} MB"


def _onnx(generator: nn.Module, metadata: dict[str, str], opset: int) -> bytes:
    if isinstance(generator, DeconvolutionUNet):
        raise InputError(
            "a deconvolution-unet cannot be exported to ONNX: how it estimates a kernel depends on the picture's size; "
            "export to .safetensors, or export another architecture"
        )
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ModuleNotFoundError as error:
        raise InputError(f"ONNX needs more packages ({error}): pip install 'deblur-gan[onnx]'") from error
    try:
        with _quiet():
            program = torch.onnx.export(
                generator,
                (_example(),),
                dynamo=True,
                dynamic_shapes=(_sizes(),),
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"this architecture cannot be exported to ONNX ({reason}); use .safetensors") from error
    file = program.model_proto  # type: ignore[union-attr]  # None only without dynamo
    onnx.helper.set_model_props(file, metadata)
    exported: bytes = file.SerializeToString()
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    _compare(generator, lambda picture: session.run([_OUTPUT], {_INPUT: picture.numpy()})[0])
    return exported


def _example() -> Tensor:
    # No side is 1, or like another: torch would take it for constant, or for the same.
    return torch.rand(2, 3, 67, 93) * 2 - 1


def _sizes() -> dict[int, Any]:
    return dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)


@torch.inference_mode()
def _compare(generator: nn.Module, run: Callable[[Tensor], np.ndarray]) -> None:
    """Raises InputError where a picture's result is not that of the generator."""
    # The last is longer than NAFNet's windows: there it no longer takes the mean of the whole picture.
    windows = (part.window for part in generator.modules() if isinstance(part, LocalMean))
    sizes = ((64, 64), (93, 67), (30, max(windows, default=0) + 80))
    for (height, width), batch in itertools.product(sizes, (1, 2)):
        picture = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
        picture *= torch.linspace(0, 1, width)  # local means differ from that of the whole
        error = float(np.abs(run(picture) - generator(picture).numpy()).max())
        if not error <= TOLERANCE:
            raise InputError(
                f"the exported network differs by {error:.2g} at {height}x{width} pixels: this architecture cannot be "
                "exported for all sizes; export to .safetensors"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about its own parts."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
