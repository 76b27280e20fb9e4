"""Tiled restoration against the whole picture, on a real photograph and with the real generators."""

import itertools
import logging
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from deblur.inference.pieces import PieceRunner
from deblur.inference.tiles import FACTOR, MARGIN, RAMP, advance, ramps, restore_picture, restoring_tiled, spans
from deblur.models.generator import ResNetGenerator
from deblur.models.pixels import from_uint8, to_uint8

SMALLEST = 2 * MARGIN + RAMP + FACTOR


def _photograph(height: int, width: int) -> np.ndarray:
    return skimage.data.retina()[200 : 200 + height, 150 : 150 + width]


def _floats(picture: np.ndarray) -> Tensor:
    return from_uint8(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])


def _resnet(norm: str, filters: int = 2) -> ResNetGenerator:
    torch.manual_seed(0)
    settings = {"dropout": 0.5, "upsampling": "transposed", "output": "clamp"}
    generator = ResNetGenerator(filters=filters, blocks=9, norm=norm, **settings).eval()
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # one forward sets the statistics: no layer dies, so context matters
    with torch.no_grad():
        generator.train()(_floats(_photograph(256, 256)))
    return generator.eval()


def _whole(generator: nn.Module, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        return generator(pictures)


def _tiled(
    generator: nn.Module, picture: np.ndarray, *, has_statistics: bool | None = None, **sizes: int
) -> np.ndarray:
    """[H, W, 3] uint8; `has_statistics` as the generator has them unless said otherwise."""
    runner = PieceRunner(generator, "cpu")
    steps = restoring_tiled(picture, runner.has_statistics if has_statistics is None else has_statistics, **sizes)
    wanted = advance(steps)
    while isinstance(wanted, list):
        wanted = advance(steps, [runner.run([piece])[0] for piece in wanted])
    return wanted


def _levels(a: np.ndarray, b: Tensor) -> np.ndarray:
    """Absolute differences of pixels [H, W, 3] to floats [1, 3, H, W], in levels of 255, not rounded."""
    return np.abs(a - (b[0].permute(1, 2, 0).double().numpy() + 1) * 127.5)


@pytest.mark.parametrize(("height", "width"), [(533, 701), (SMALLEST * 2, 40), (SMALLEST + 1, SMALLEST - 1)])
def test_with_batchnorm_tiles_equal_the_whole_picture(height: int, width: int) -> None:
    picture, generator = _photograph(height, width), _resnet("batch")
    whole = _whole(generator, _floats(picture))
    assert _levels(picture, whole).mean() > 1  # the generator does change the picture
    assert _levels(_tiled(generator, picture, tile=SMALLEST), whole).max() < 0.5 + 1e-5 * 127.5  # rounded correctly


def test_tiles_with_too_little_context_differ_from_the_whole_picture() -> None:
    picture, generator = _photograph(60, 770), _resnet("batch")
    tiled = _tiled(generator, picture, tile=SMALLEST, margin=0)
    assert _levels(tiled, _whole(generator, _floats(picture))).max() > 2


def test_shared_instancenorm_statistics_are_clearly_closer_to_the_whole_picture() -> None:
    picture, generator = skimage.data.rocket()[:427, :639], _resnet("instance", filters=8)
    whole = _whole(generator, _floats(picture))
    shared = _levels(_tiled(generator, picture, tile=SMALLEST), whole)
    own = _levels(_tiled(generator, picture, tile=SMALLEST, has_statistics=False), whole)
    rounding = 1 / 12  # of a level, squared
    assert (shared**2).mean() - rounding < ((own**2).mean() - rounding) / 2


@pytest.mark.soak
def test_a_large_photograph_takes_less_than_twelve_bytes_per_pixel() -> None:
    """Decoded, restored in tiles and encoded, in processes of their own."""
    script = """
import io, resource, sys
import PIL.Image, torch
from deblur.inference.bulk import restore_file
data = io.BytesIO()
PIL.Image.effect_noise((8000, int(sys.argv[1])), 50).convert("RGB").save(data, "JPEG")
restore_file(torch.nn.Identity(), data.getvalue(), "x", ".jpg", torch.device("cpu"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    small, large = (
        1024 * int(subprocess.run([sys.executable, "-c", script, rows], capture_output=True, check=True).stdout)
        for rows in ("4000", "12000")
    )
    assert large - small < 12 * 8000 * 8000


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_tiles_on_gpu_and_cpu_agree(norm: str) -> None:
    picture, generator = _photograph(300, 701), _resnet(norm)
    expected = restore_picture(generator, picture, device="cpu", max_pixels=0, tile=SMALLEST)
    found = restore_picture(generator.to("cuda"), picture, device="cuda", max_pixels=0, tile=SMALLEST)
    assert np.abs(found.astype(int) - expected).mean() < 1


def test_tiles_share_the_overlap_and_start_on_the_strides_of_the_whole_picture() -> None:
    for length in (*range(1, 40), *range(900, 3000, 37)):
        for tile, overlap in ((512, 208), (1024, 208), (512, 0)):
            pieces = spans(length, tile, overlap)
            assert (pieces[0].start, pieces[-1].stop) == (0, length)
            assert all(piece.start % FACTOR == 0 and 0 < piece.stop - piece.start <= tile for piece in pieces)
            assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(pieces))


@pytest.mark.parametrize("length", [100, 800, 1500, 2311])
def test_weights_sum_to_one_and_context_has_none(length: int) -> None:
    pieces = spans(length, 600, 2 * MARGIN + RAMP)
    total = torch.zeros(length)
    for weight, piece in zip(ramps(pieces, MARGIN), pieces, strict=True):
        total[piece] += weight
        assert piece.start == 0 or not weight[:MARGIN].any()
        assert piece.stop == length or not weight[-MARGIN:].any()
    torch.testing.assert_close(total, torch.ones(length))


def test_weights_of_a_long_picture_take_no_more_memory_than_its_pieces() -> None:
    pieces = spans(3_000_000, 600, 2 * MARGIN + RAMP)
    weights = ramps(pieces, MARGIN)
    assert [len(weight) for weight in weights] == [piece.stop - piece.start for piece in pieces]


def test_a_tile_too_small_for_its_context_is_refused() -> None:
    with pytest.raises(ValueError, match=f"300 .* {SMALLEST}"):
        next(restoring_tiled(_photograph(8, 8), False, tile=300))


class _Recorder(nn.Module):
    """Returns its input and records its size; the first pictures over `limit` pixels raise OutOfMemoryError."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit = limit
        self.sizes: list[tuple[int, ...]] = []

    def __deepcopy__(self, memo: object) -> "_Recorder":
        return self  # the runner's copy records here

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures[0, 0].numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(tuple(pictures.shape[-2:]))
        return pictures


def test_only_pictures_over_the_limit_are_restored_in_tiles() -> None:
    picture, recorder = _photograph(40, 700), _Recorder()
    np.testing.assert_array_equal(restore_picture(recorder, picture, device="cpu", max_pixels=28_000), picture)
    assert recorder.sizes == [(40, 700)]
    recorder.sizes.clear()
    restored = restore_picture(recorder, picture, device="cpu", max_pixels=27_999, tile=SMALLEST)
    np.testing.assert_array_equal(restored, picture)
    assert recorder.sizes == [(40, SMALLEST), (40, 700 - FACTOR)]


def test_a_generator_may_lower_the_limit() -> None:
    picture, recorder = _photograph(40, 1100), _Recorder()
    recorder.max_pixels = 40 * 1100
    restore_picture(recorder, picture, device="cpu")
    recorder.max_pixels -= 1
    np.testing.assert_array_equal(restore_picture(recorder, picture, device="cpu"), picture)
    assert recorder.sizes == [(40, 1100), (40, 1024), (40, 1100 - FACTOR)]


def test_out_of_memory_falls_back_to_tiles_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    picture, recorder = _photograph(40, 700), _Recorder(limit=22_000)
    with caplog.at_level(logging.WARNING):
        restored = restore_picture(recorder, picture, device="cpu", tile=SMALLEST)
    np.testing.assert_array_equal(restored, picture)
    assert "700 x 40" in caplog.text


def test_a_picture_is_restored_as_floats_and_rounded() -> None:
    picture, generator = _photograph(33, 50), _resnet("instance")
    expected = to_uint8(_whole(generator, _floats(picture)))[0].permute(1, 2, 0).numpy()
    restored = restore_picture(generator, picture, device="cpu")
    assert restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, expected)
