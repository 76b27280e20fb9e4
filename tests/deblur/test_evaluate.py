"""Scores against scikit-image on folders and on a packed dataset; what cannot be compared is refused by name."""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import skimage.data
import skimage.metrics
import torch
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.storage import open_store
from deblur import evaluate as command
from deblur import recipe as recipes
from deblur.data import pictures
from deblur.evaluate import Score, Settings, as_json, dataset_pairs, evaluate, folder_pairs, mean, table
from deblur.quality import DEFINITION
from deblur.recipe import GeneratorRecipe, Recipe, build_generator
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


def score(key: str, *values: float) -> Score:
    names = ("blurred_psnr", "restored_psnr", "blurred_ssim", "restored_ssim")
    return Score(key=key, **dict(zip(names, values, strict=True)))


def test_scores_are_scikit_images_of_the_rounded_restoration_and_of_the_input() -> None:
    sharp = [photograph(0), photograph(100)]
    pairs = [(f"k{nth}", darker(picture), picture) for nth, picture in enumerate(sharp)]
    scores = evaluate(Brighter(), pairs, "cpu")
    assert [found.key for found in scores] == ["k0", "k1"]
    for found, (_, blurred, target) in zip(scores, pairs, strict=True):
        assert (found.blurred_psnr, found.blurred_ssim) == pytest.approx(reference(blurred, target), abs=1e-6)
        assert (found.restored_psnr, found.restored_ssim) == pytest.approx(reference(blurred + 1, target), abs=1e-6)


def test_the_mean_is_of_the_pictures_values() -> None:
    scores = [score("a", 20, 30, 0.5, 0.7), score("b", 24, 25, 0.7, 0.8)]
    assert mean(scores) == score("mean", 22, 27.5, 0.6, 0.75)


def test_the_table_ends_with_the_mean_and_the_gain() -> None:
    lines = table([score("a", 20, 30, 0.5, 0.7), score("scene-1", 24, 25, 0.7, 0.8)]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert cells[0] == ["key", "blurred PSNR", "restored PSNR", "blurred SSIM", "restored SSIM"]
    assert cells[2] == ["scene-1", "24.00", "25.00", "0.7000", "0.8000"]
    assert cells[-2] == ["mean", "22.00", "27.50", "0.6000", "0.7500"]
    assert lines[-1] == "gain over blurred: +5.50 dB PSNR, +0.1500 SSIM"
    assert len({line.index("|") for line in lines if "|" in line}) == 1


def test_infinite_psnr_is_null_in_json() -> None:
    found = json.loads(as_json([score("a", 20, float("inf"), 0.5, 1)], "runs/x"), parse_constant=pytest.fail)
    assert found["pictures"][0]["restored_psnr"] is None
    assert found["mean"]["blurred_psnr"] == 20


def test_pairs_of_different_size_or_under_the_window_are_refused_by_key() -> None:
    picture = photograph(0)
    with pytest.raises(InputError, match=r"k7: .*60x40 and 59x40"):
        evaluate(Brighter(), [("k7", picture, picture[:, 1:])], "cpu")
    with pytest.raises(InputError, match=r"k8: .*60x10"):
        evaluate(Brighter(), [("k8", picture[:10], picture[:10])], "cpu")


def test_folders_give_pairs_of_equal_names_in_order(tmp_path: Path) -> None:
    count, pairs = folder_pairs(*folders(tmp_path, ("b.png", "a.png", "scene/a.png")))
    found = list(pairs)
    assert [key for key, *_ in found] == ["a.png", "b.png", "scene/a.png"]
    assert count == 3
    for (_, blurred, sharp), top in zip(found, (30, 0, 60), strict=True):
        np.testing.assert_array_equal(sharp, photograph(top))
        np.testing.assert_array_equal(blurred, darker(photograph(top)))


@pytest.mark.parametrize(("lost", "left"), [("blurred", "sharp"), ("sharp", "blurred")])
def test_a_picture_without_its_partner_is_refused_with_both_names(tmp_path: Path, lost: str, left: str) -> None:
    blurred, sharp = folders(tmp_path, ("a.png", "b.png"))
    (tmp_path / lost / "b.png").unlink()
    with pytest.raises(InputError, match=rf"{left}/b\.png: has no partner .*{lost}/b\.png"):
        folder_pairs(blurred, sharp)


def test_a_datasets_split_gives_its_keys_and_full_frames(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    split = write_dataset(store, train=2, validation=3).index.splits["validation"]
    count, pairs = dataset_pairs(str(tmp_path), "validation")
    found = list(pairs)
    assert count == len(found) == 3
    assert [key for key, *_ in found] == [s.key for shard in split.shards for s in shard.samples]
    assert all(blurred.shape == sharp.shape == (48, 56, 3) for _, blurred, sharp in found)
    assert all((blurred != sharp).any() for _, blurred, sharp in found)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    write_dataset(open_store(tmp_path), train=2)
    with pytest.raises(InputError, match=r"no split 'test'; choose --split train or validation"):
        dataset_pairs(str(tmp_path), "test")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="give both"):
        Settings(model="m", blurred=Path("b"))
    with pytest.raises(InputError, match="exclude each other"):
        Settings(model="m", blurred=Path("b"), sharp=Path("s"), data="d")
    with pytest.raises(InputError, match="--limit is 0"):
        Settings(model="m", limit=0)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--device", "cpu", *arguments])
    command.main()


def test_the_command_measures_the_dataset_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(generator=GeneratorRecipe(filters=2, blocks=1, norm="batch", output="mean"))
    generator = build_generator(recipe).eval()
    metadata = {"recipe": recipes.to_json(recipe)}
    safetensors.torch.save_file(generator.state_dict(), tmp_path / "generator.safetensors", metadata)
    write_dataset(open_store(tmp_path / "data"), train=1, validation=3)
    monkeypatch.setenv("DEBLUR_DATA", str(tmp_path / "data"))
    out = tmp_path / "scores.json"
    model = str(tmp_path / "generator.safetensors")
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


def test_the_command_without_data_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEBLUR_DATA", raising=False)
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, "--model", "nowhere")
    assert "DEBLUR_DATA" in capsys.readouterr().err


def test_a_picture_that_does_not_decode_is_refused_by_name(tmp_path: Path) -> None:
    blurred, sharp = folders(tmp_path, ("a.png",))
    (sharp / "a.png").write_bytes(pictures.encode_png(photograph(0))[:100])
    with pytest.raises(InputError, match=r"sharp/a\.png"):
        list(folder_pairs(blurred, sharp)[1])
