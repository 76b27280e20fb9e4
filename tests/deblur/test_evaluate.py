"""Scores against scikit-image, on folders and on a packed dataset; refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import skimage.data
import skimage.metrics
import torch
import torchvision
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.storage import open_store
from deblur import evaluate as command
from deblur.config import recipes
from deblur.config.recipes import GeneratorRecipe, Recipe
from deblur.data import pictures
from deblur.data.sample_set import blurred_photographs
from deblur.evaluation.detection import Detections, Matches
from deblur.evaluation.evaluator import dataset_pairs, evaluate, folder_pairs
from deblur.evaluation.quality import DEFINITION
from deblur.evaluation.settings import EvaluateSettings
from deblur.models.build import build_generator
from tests.datasets import write_dataset


class Brighter(nn.Module):
    """Adds 0.7 of a level: 1 after rounding, 0 after truncation."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures + 0.7 / 127.5


def photograph(top: int) -> np.ndarray:
    return skimage.data.rocket()[top : top + 40, 200:260] // 2 + 20


def darker(picture: np.ndarray) -> np.ndarray:
    return picture - np.random.default_rng(0).integers(0, 9, picture.shape, dtype=np.uint8)


def reference(picture: np.ndarray, sharp: np.ndarray) -> tuple[float, float]:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    return (
        skimage.metrics.peak_signal_noise_ratio(sharp, picture, data_range=255),
        skimage.metrics.structural_similarity(sharp, picture, data_range=255, **options),
    )


def folders(root: Path, names: tuple[str, ...]) -> tuple[Path, Path]:
    for nth, name in enumerate(names):
        for side, picture in (("blurred", darker(photograph(30 * nth))), ("sharp", photograph(30 * nth))):
            path = root / side / name
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(picture).save(path)
    return root / "blurred", root / "sharp"


def test_scores_are_scikit_images_of_the_rounded_restoration_and_of_the_input() -> None:
    sharp = [photograph(0), photograph(100)]
    pairs = [(f"k{nth}", darker(picture), picture) for nth, picture in enumerate(sharp)]
    scores = evaluate(Brighter(), pairs, "cpu")
    assert [found.key for found in scores] == ["k0", "k1"]
    for found, (_, blurred, target) in zip(scores, pairs, strict=True):
        assert (found.blurred_psnr, found.blurred_ssim) == pytest.approx(reference(blurred, target), abs=1e-6)
        assert (found.restored_psnr, found.restored_ssim) == pytest.approx(reference(blurred + 1, target), abs=1e-6)


def test_metrics_that_are_not_enabled_give_no_scores() -> None:
    (found,) = evaluate(Brighter(), [("k", darker(photograph(0)), photograph(0))], "cpu")
    assert (found.blurred_lpips, found.restored_lpips) == (None, None)
    assert (found.blurred_matches, found.restored_matches) == (None, None)


class MeanDifference(nn.Module):
    """Replaces LPIPS: difference of mean brightness, in levels."""

    def forward(self, restored: Tensor, sharp: Tensor) -> Tensor:
        return (restored - sharp).mean(dim=(1, 2, 3), keepdim=True) * 127.5


class BrightestPixels:
    """A detector that finds each pixel of level 255 as a box of one pixel."""

    name = "brightest pixels"

    def __call__(self, picture: np.ndarray) -> Detections:
        top, left = np.nonzero((picture == 255).all(axis=2))
        return Detections(np.stack([left, top, left + 1, top + 1], axis=1), np.zeros(len(left), dtype=int))


def test_each_metric_compares_the_blurred_and_the_restored_picture_with_the_sharp_one() -> None:
    blurred = np.full((40, 40, 3), 100, np.uint8)
    sharp = blurred + 3
    blurred[5, 6] = blurred[20, 10] = 254  # the restoration is one brighter
    sharp[5, 6] = sharp[30, 30] = 255
    (found,) = evaluate(
        Brighter(), [("k", blurred, sharp)], "cpu", lpips_network=MeanDifference(), detector=BrightestPixels()
    )
    assert found.blurred_lpips == pytest.approx(blurred.mean() - sharp.mean(), abs=1e-3)
    assert found.restored_lpips == pytest.approx(blurred.mean() + 1 - sharp.mean(), abs=1e-3)
    assert found.blurred_matches == Matches(0, 0, 2)
    assert found.restored_matches == Matches(1, 1, 1)


def test_pairs_of_different_size_or_under_the_window_are_refused_by_key() -> None:
    picture = photograph(0)
    with pytest.raises(InputError, match=r"k7: .*60x40 and 59x40"):
        evaluate(Brighter(), [("k7", picture, picture[:, 1:])], "cpu")
    with pytest.raises(InputError, match=r"k8: .*60x10"):
        evaluate(Brighter(), [("k8", picture[:10], picture[:10])], "cpu")
    with pytest.raises(InputError, match=r"k9: .*60x30"):
        evaluate(Brighter(), [("k9", picture[:30], picture[:30])], "cpu", lpips_network=MeanDifference())


def test_folders_give_pairs_of_equal_names_sorted(tmp_path: Path) -> None:
    count, pairs = folder_pairs(*map(str, folders(tmp_path, ("b.png", "a.png", "scene/a.png"))))
    found = list(pairs)
    assert [key for key, *_ in found] == ["a.png", "b.png", "scene/a.png"]
    assert count == 3
    for (_, blurred, sharp), top in zip(found, (30, 0, 60), strict=True):
        np.testing.assert_array_equal(sharp, photograph(top))
        np.testing.assert_array_equal(blurred, darker(photograph(top)))


@pytest.mark.parametrize(("lost", "left"), [("blurred", "sharp"), ("sharp", "blurred")])
def test_an_unpaired_picture_is_refused_by_name(tmp_path: Path, lost: str, left: str) -> None:
    blurred, sharp = folders(tmp_path, ("a.png", "b.png"))
    (tmp_path / lost / "b.png").unlink()
    with pytest.raises(InputError, match=rf"{left}/b\.png: has no {lost} counterpart"):
        folder_pairs(str(blurred), str(sharp))


def test_a_datasets_split_gives_its_keys_and_full_frames(tmp_path: Path) -> None:
    dataset = write_dataset(open_store(tmp_path), train=2, validation=3)
    split = dataset.index.splits["validation"]
    count, pairs = dataset_pairs(str(tmp_path), "validation")
    found = list(pairs)
    assert count == len(found) == 3
    assert [key for key, *_ in found] == [s.key for shard in split.shards for s in dataset.samples(shard)]
    assert all(blurred.shape == sharp.shape == (48, 56, 3) for _, blurred, sharp in found)
    assert all((blurred != sharp).any() for _, blurred, sharp in found)


def test_a_missing_split_is_refused_with_the_existing_ones(tmp_path: Path) -> None:
    write_dataset(open_store(tmp_path), train=2)
    with pytest.raises(InputError, match=r"no split 'test'; choose --split train or validation"):
        dataset_pairs(str(tmp_path), "test")


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(InputError, match="give both"):
        EvaluateSettings(model="m", blurred=Path("b"))
    with pytest.raises(InputError, match="exclude each other"):
        EvaluateSettings(model="m", blurred=Path("b"), sharp=Path("s"), data="d")
    with pytest.raises(InputError, match="--limit is 0"):
        EvaluateSettings(model="m", limit=0)
    with pytest.raises(InputError, match="without --lpips"):
        EvaluateSettings(model="m", lpips_weights="w.pth")
    with pytest.raises(InputError, match="without --detect"):
        EvaluateSettings(model="m", detector_weights="w.pth")
    with pytest.raises(InputError, match=r"--detector ssdlite.*: .*--detector-weights"):
        EvaluateSettings(model="m", detect=True, detector="ssdlite320_mobilenet_v3_large")
    with pytest.raises(InputError, match="add --detector, one of fasterrcnn_resnet50_fpn_v2, retina"):
        EvaluateSettings(model="m", detect=True, detector_weights="w.pth")


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--device", "cpu", *arguments])
    command.main()


def write_generator(folder: Path) -> tuple[str, nn.Module]:
    """The file of a small untrained generator, and the generator."""
    recipe = Recipe(generator=GeneratorRecipe(filters=2, blocks=1, norm="batch", output="mean"))
    generator = build_generator(recipe).eval()
    metadata = {"recipe": recipes.to_json(recipe)}
    safetensors.torch.save_file(generator.state_dict(), folder / "generator.safetensors", metadata)
    return str(folder / "generator.safetensors"), generator


def test_the_command_evaluates_on_the_dataset_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, generator = write_generator(tmp_path)
    write_dataset(open_store(tmp_path / "data"), train=1, validation=3)
    monkeypatch.setenv("DEBLUR_DATA", str(tmp_path / "data"))
    out = tmp_path / "scores.json"
    run_command(monkeypatch, "--model", model, "--split", "validation", "--limit", "2", "--json", str(out))
    printed = capsys.readouterr().out
    assert DEFINITION in printed
    assert "2 of 3 pictures" in printed
    found = json.loads(out.read_text())
    assert found["definition"] == DEFINITION
    _, pairs = dataset_pairs(str(tmp_path / "data"), "validation")
    for row, (key, blurred, sharp) in zip(found["pictures"], list(pairs)[:2], strict=True):
        pixels = torch.from_numpy(blurred).permute(2, 0, 1)[None] / 127.5 - 1
        restored = ((generator(pixels) + 1) * 127.5).round().detach().numpy()[0].transpose(1, 2, 0).astype(np.uint8)
        assert row["key"] == key
        assert (row["restored_psnr"], row["restored_ssim"]) == pytest.approx(reference(restored, sharp), abs=1e-3)
        assert (row["blurred_psnr"], row["blurred_ssim"]) == pytest.approx(reference(blurred, sharp), abs=1e-6)


def test_the_command_computes_every_metric_on_the_held_out_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (held_out,) = blurred_photographs("test")
    for side in ("blurred", "sharp"):
        (tmp_path / side).mkdir()
        PIL.Image.fromarray(getattr(held_out, side)).save(tmp_path / side / "astronaut.png")
    convolutions = torchvision.models.alexnet().features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in convolutions.items()}, tmp_path / "alexnet.pth")
    model, _ = write_generator(tmp_path)
    pair = ("--blurred", str(tmp_path / "blurred"), "--sharp", str(tmp_path / "sharp"))
    metrics = ("--lpips", "--lpips-weights", str(tmp_path / "alexnet.pth"), "--detect")
    run_command(monkeypatch, "--model", model, *pair, *metrics, "--json", str(tmp_path / "scores.json"))
    printed = capsys.readouterr().out
    rows = [line.split("|")[0].strip() for line in printed.splitlines() if "|" in line]
    assert rows[2:] == [
        "metric",
        "PSNR dB",
        "SSIM",
        "LPIPS",
        *(f"detection {it}" for it in ("precision", "recall", "F1")),
    ]
    assert f"alexnet with the weights of {tmp_path / 'alexnet.pth'}" in printed
    assert "Detection by scikit-image's cascade of frontal faces" in printed
    assert "boxes: sharp 1; " in printed
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["mean"]["blurred_lpips"] == found["pictures"][0]["blurred_lpips"] > 0
    for side in ("blurred", "restored"):
        assert found["detection"][side]["true_positives"] + found["detection"][side]["misses"] == 1


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (("--lpips",), "no route to host; give --lpips-weights"),
        (("--lpips", "--lpips-weights", "none.pth"), "none.pth"),
        (("--detect", "--detector", "retinanet_resnet50_fpn_v2", "--detector-weights", "none.pth"), "none.pth"),
    ],
)
def test_an_unavailable_metric_is_refused_in_one_line_before_any_picture_is_restored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    cause: str,
) -> None:
    def no_route(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_route)
    monkeypatch.setattr(
        "deblur.evaluation.evaluator.restore_picture", lambda *_, **__: pytest.fail("a picture was restored")
    )
    monkeypatch.chdir(tmp_path)
    model, _ = write_generator(tmp_path)
    blurred, sharp = folders(tmp_path, ("a.png",))
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, "--model", model, "--blurred", str(blurred), "--sharp", str(sharp), *flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert cause in line


def test_the_command_needs_torchmetrics_only_for_lpips() -> None:
    script = "import sys; sys.modules['torchmetrics'] = None; import deblur.evaluate"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_command_without_data_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEBLUR_DATA", raising=False)
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, "--model", "nowhere")
    assert "DEBLUR_DATA" in capsys.readouterr().err


def test_an_undecodable_picture_is_refused_by_name(tmp_path: Path) -> None:
    blurred, sharp = folders(tmp_path, ("a.png",))
    (sharp / "a.png").write_bytes(pictures.encode_png(photograph(0))[:100])
    with pytest.raises(InputError, match=r"sharp/a\.png"):
        list(folder_pairs(str(blurred), str(sharp))[1])
