"""deblur as a Python package: load, restore, compare, read a dataset."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.metrics
import torch
from torch import Tensor, nn

import deblur
from cluster.errors import InputError
from cluster.storage import open_store
from deblur.data.sample_set import blurred_photographs
from deblur.inference.model import Model
from tests.datasets import picture, write_dataset


class Negative(nn.Module):
    def forward(self, blurred: Tensor) -> Tensor:
        return -blurred


MODEL = Model(Negative().eval(), torch.device("cpu"))
RGB = picture(0, 30, 40)


def test_the_lines_of_the_documentation_sharpen_a_photograph(tmp_path: Path) -> None:
    (sample,) = blurred_photographs("test")
    PIL.Image.fromarray(sample.blurred).save(tmp_path / "photo.png")
    sharp = deblur.load(device="cpu").restore(tmp_path / "photo.png")
    assert isinstance(sharp, PIL.Image.Image)
    before, after = (deblur.metrics.psnr(side, sample.sharp) for side in (sample.blurred, sharp))
    assert after > before + 1
    expected = skimage.metrics.peak_signal_noise_ratio(sample.sharp, np.asarray(sharp))
    assert after == pytest.approx(expected)
    assert deblur.metrics.ssim(sharp, sample.sharp) > deblur.metrics.ssim(sample.blurred, sample.sharp)


@pytest.mark.parametrize(
    "given",
    [
        RGB,
        RGB[..., 0],
        RGB[..., :1],
        np.dstack([RGB, RGB[..., 0]]),
        (RGB / 255).astype(np.float32),
        RGB[..., 0] / 255,
        RGB.astype(np.uint16) * 257,
        (RGB.astype(np.uint16) * 257).astype(">u2"),
        np.dstack([RGB, RGB[..., 0]]) / 255,
        np.asfortranarray(RGB),
        RGB[:, ::-1],
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_an_array_comes_back_in_its_own_shape_and_type(given: np.ndarray) -> None:
    found = MODEL.restore(given)
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == (given.shape, given.dtype)
    white = {"u1": 255, "u2": 65535}.get(given.dtype.str[1:], 1.0)
    colours = slice(0, 3) if given.ndim == 3 else slice(None)
    expected = white - given.astype(float)
    assert np.allclose(found[..., colours], expected[..., colours], atol=white / 254)
    if given.shape[2:] == (4,):
        assert np.array_equal(found[..., 3], given[..., 3])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_an_image_comes_back_as_one(mode: str) -> None:
    given = PIL.Image.fromarray(RGB).convert(mode)
    found = MODEL.restore(given)
    assert isinstance(found, PIL.Image.Image)
    assert found.mode == {"P": "RGB", "1": "L"}.get(mode, mode)
    assert found.size == given.size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (RGB.astype(float), r"floats in \[0, 254\]; expected \[0, 1\]"),
        (np.full((4, 4), np.nan), "floats in"),
        (RGB.astype(int), "of int64; expected uint8"),
        (RGB[None], r"is \[1, 30, 40, 3\]; expected"),
        (RGB[..., :2], r"is \[30, 40, 2\]"),
        (RGB[:0], r"is \[0, 40, 3\]"),
        ("nowhere.jpg", "nowhere.jpg: cannot be read"),
        (PIL.Image.new("RGB", (0, 3)), "0x3 pixels"),
        (3, "int is no picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        MODEL.restore(given)
    assert "\n" not in str(refused.value)


def test_pictures_of_other_sizes_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="40x30 and 39x30"):
        deblur.metrics.psnr(RGB, RGB[:, 1:])
    with pytest.raises(InputError, match="smaller than"):
        deblur.metrics.ssim(RGB[:8], RGB[:8])


def test_the_pairs_of_a_dataset_can_be_iterated(tmp_path: Path) -> None:
    write_dataset(open_store(tmp_path), train=3)
    found = {key: (blurred, sharp) for key, blurred, sharp in deblur.pairs(str(tmp_path))}
    assert sorted(found) == ["t-000", "t-001", "t-002"]
    assert np.array_equal(found["t-001"][1], picture(1, 48, 56))
    with pytest.raises(InputError, match="train or validation"):
        deblur.pairs(str(tmp_path), "test")


def test_importing_the_package_is_cheap() -> None:
    script = "import deblur, sys; print(sorted({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
