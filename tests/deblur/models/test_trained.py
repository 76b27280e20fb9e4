"""Trained generators as files: export, and refusal of what is not one."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from skimage.metrics import peak_signal_noise_ratio

from cluster.errors import InputError
from deblur.config.recipes import GeneratorRecipe, Recipe, to_json
from deblur.data.sample_set import PHOTOGRAPHS, blurred_photographs, photograph
from deblur.inference.tiles import restore_picture
from deblur.models.build import build_generator
from deblur.models.names import EMBEDDED
from deblur.models.trained import load_model, read_model
from deblur.models.weights import encode_generator

CPU = torch.device("cpu")
RECIPE = Recipe(
    generator=GeneratorRecipe(architecture="fast-unet", filters=16, encoder_blocks=(1,), decoder_blocks=(1,))
)


def file_of(folder: Path, recipe: Recipe = RECIPE) -> Path:
    path = folder / "generator.safetensors"
    path.write_bytes(encode_generator(build_generator(RECIPE).state_dict(), recipe))
    return path


def test_the_model_inside_the_package_fits_into_eight_megabytes() -> None:
    assert len(read_model(EMBEDDED)) <= 8_000_000


def test_the_embedded_model_sharpens_a_photograph_that_nobody_trained_on() -> None:
    (pair,) = blurred_photographs("test")
    restored = restore_picture(load_model(EMBEDDED, CPU), pair.blurred, device=CPU)
    assert peak_signal_noise_ratio(pair.sharp, restored) > peak_signal_noise_ratio(pair.sharp, pair.blurred) + 1.0


@pytest.mark.parametrize("name", [name for names in PHOTOGRAPHS.values() for name in names])
def test_the_embedded_model_changes_a_sharp_photograph_little(name: str) -> None:
    sharp = photograph(name)
    restored = restore_picture(load_model(EMBEDDED, CPU), sharp, device=CPU)
    assert peak_signal_noise_ratio(sharp, restored) > 30


def future() -> bytes:
    recipe = json.loads(to_json(RECIPE)) | {"invented_later": 1}
    return safetensors.torch.save({"x": torch.zeros(1)}, {"recipe": json.dumps(recipe)})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (future(), "invented_later"),
        (encode_generator({"first.weight": torch.zeros(3)}, RECIPE), "first.weight"),
        (encode_generator(build_generator(RECIPE).state_dict(), RECIPE)[:-100], "damaged"),
        (safetensors.torch.save({"x": torch.zeros(1)}), "not a generator"),
        (b"\x80\x04cposix\nsystem\n", "not a generator"),
        (b"", "not a generator"),
    ],
    ids=["of a future version", "another network", "truncated", "without a recipe", "a pickle", "empty"],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "generator.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=named) as refused:
        load_model(str(path), CPU)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("bias", "message"), [(float("nan"), "last.bias has numbers that are not finite"), (100.0, "same flat picture")]
)
def test_a_model_that_has_diverged_is_refused(tmp_path: Path, bias: float, message: str) -> None:
    weights = build_generator(RECIPE).state_dict()
    weights["last.bias"] = torch.full_like(weights["last.bias"], bias)
    path = tmp_path / "generator.safetensors"
    path.write_bytes(encode_generator(weights, RECIPE))
    with pytest.raises(InputError, match=message):
        load_model(str(path), CPU)


def test_equal_weights_are_equal_bytes_and_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    weights = build_generator(RECIPE).state_dict()
    data = encode_generator(weights, RECIPE)
    assert encode_generator(dict(reversed(weights.items())), RECIPE) == data
    assert all(torch.equal(weights[name], tensor) for name, tensor in safetensors.torch.load(data).items())
    path = tmp_path / "generator.safetensors"
    path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    with pytest.raises(InputError, match=r"damaged: .* SHA-256"):
        load_model(str(path), CPU)


def test_a_network_larger_than_its_file_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, generator=GeneratorRecipe(filters=4096, blocks=1000))  # 19 TB
    path = tmp_path / "generator.safetensors"
    path.write_bytes(encode_generator(build_generator(RECIPE).state_dict(), recipe))
    with pytest.raises(InputError, match="weights of another network"):
        load_model(str(path), CPU)
