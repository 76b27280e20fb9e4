"""Restoring files: what is kept of them, bad files, models, and the mapping of inputs to outputs."""

import io
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

from cluster.errors import InputError
from cluster.storage import Store, join, open_store
from cluster.storage.checkpoints import Checkpoints
from deblur import restore
from deblur.config import presets, recipes
from deblur.config.recipes import GeneratorRecipe, Recipe
from deblur.data import pictures
from deblur.inference import bulk
from deblur.inference.bulk import FileOptions, Photo, plan, restore_file, restore_photographs
from deblur.inference.settings import RestoreSettings
from deblur.models.build import build_generator
from deblur.models.trained import load_model, read_model
from tests.datasets import picture

RECIPE = replace(presets.paper(), generator=GeneratorRecipe(filters=2, blocks=1, dropout=0.0))
CPU = torch.device("cpu")


def weights_of(recipe: Recipe, seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    return safetensors.torch.save(build_generator(recipe).state_dict(), metadata={"recipe": recipes.to_json(recipe)})


def write_run(store: Store, *seeds: int) -> None:
    checkpoints = Checkpoints(store, keep=9)
    for nth, seed in enumerate(seeds):
        checkpoints.save(8 * (nth + 1), {"generator.safetensors": weights_of(RECIPE, seed)})
    checkpoints.wait()


class Negative(torch.nn.Module):
    """A generator that negates every value."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return -pictures


def restored(image: PIL.Image.Image, suffix: str = ".png", **options: object) -> PIL.Image.Image:
    data = io.BytesIO()
    image.save(data, {".png": "PNG", ".jpg": "JPEG"}[suffix], **options)
    return PIL.Image.open(io.BytesIO(restore_file(Negative(), data.getvalue(), "in" + suffix, suffix, CPU)))


def test_every_pixel_is_restored() -> None:
    pixels = picture(0, 37, 53)
    assert np.array_equal(np.array(restored(PIL.Image.fromarray(pixels))), 255 - pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_removed(orientation: int) -> None:
    image, exif = PIL.Image.fromarray(picture(0, 37, 53)), PIL.Image.Exif()
    exif[0x0112] = orientation
    found = restored(image, exif=exif)
    upright = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation](255 - picture(0, 37, 53))
    assert np.array_equal(np.array(found), upright)
    assert found.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_date_camera_and_place_are_kept_unless_stripped(kind: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x0110], exif[0x0132], exif[0x0112] = "a phone", "2026:11:27 10:00:00", 6
    exif.get_ifd(0x8769).update({0x9003: "2026:11:27 09:59:59", 0xA002: 60, 0xA003: 40, 0x9214: (30, 20), 0xA005: 99})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 12.0, 0.0)})
    data = written(PIL.Image.fromarray(picture(0, 40, 60)), kind, exif=exif.tobytes())
    suffix = f".{kind.lower()}"
    found = PIL.Image.open(io.BytesIO(restore_file(Negative(), data, "in" + suffix, suffix, CPU))).getexif()
    assert (found[0x0110], found[0x0132]) == ("a phone", "2026:11:27 10:00:00")
    assert found.get(0x0112, 1) == 1, "it is upright now"
    assert found.get_ifd(0x8769) == {0x9003: "2026:11:27 09:59:59"}
    assert found.get_ifd(0x8825)[1] == "N"
    stripped = restore_file(Negative(), data, "in" + suffix, suffix, CPU, FileOptions(strip=True))
    left = PIL.Image.open(io.BytesIO(stripped)).getexif()
    assert not {0x0110, 0x0132, 0x8769, 0x8825} & set(left)


def test_damaged_exif_is_dropped() -> None:
    data = written(PIL.Image.fromarray(picture(0, 40, 60)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert restore_file(Negative(), data, "in.jpg", ".jpg", CPU)


def test_a_single_photograph_is_written_to_the_file_of_out(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(picture(0, 40, 60)).save(photo)
    command = RestoreSettings(inputs=(str(photo),), out=str(tmp_path / "new" / "sharp.jpg"))
    assert restore_photographs(command) == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sharp.jpg"]
    assert PIL.Image.open(tmp_path / "new" / "sharp.jpg").format == "JPEG"
    for settings, message in (
        (command, r"sharp\.jpg: exists"),
        (replace(command, out=str(photo), overwrite=True), r"photo\.png is an input"),
        (replace(command, inputs=(str(photo), str(photo))), "choose a folder"),
        (replace(command, inputs=(str(tmp_path),)), "choose a folder"),
        (replace(command, out=str(tmp_path / "x.heic")), r"\.heic is not written"),
        (replace(command, out=str(tmp_path / "x.gif"), first_frame=True), r"\.gif is not written"),
        (replace(command, out=__file__), "is a file"),
    ):
        with pytest.raises(InputError, match=message):
            restore_photographs(settings)
    assert restore_photographs(replace(command, overwrite=True)) == []


def test_alpha_is_kept() -> None:
    rgba = np.dstack([picture(0, 20, 30), np.arange(600).reshape(20, 30).astype(np.uint8)])
    found = np.array(restored(PIL.Image.fromarray(rgba)))
    assert np.array_equal(found[..., 3], rgba[..., 3])
    assert np.array_equal(found[..., :3], 255 - rgba[..., :3])


def test_grey_stays_grey() -> None:
    grey = picture(0, 20, 30)[..., 0]
    found = restored(PIL.Image.fromarray(grey))
    assert found.mode == "L"
    assert abs(np.array(found).astype(int) - (255 - grey)).max() <= 1


def test_sixteen_bits_become_eight_of_the_same_brightness() -> None:
    grey = picture(0, 20, 30)[..., 0].astype(np.uint16)
    found = restored(PIL.Image.fromarray(grey * 257))
    assert abs(np.array(found).astype(int) - (255 - grey.astype(int))).max() <= 1


def test_the_colour_profile_is_kept() -> None:
    found = restored(PIL.Image.fromarray(picture(0, 20, 30)), icc_profile=b"a profile")
    assert found.info["icc_profile"] == b"a profile"


def test_a_jpeg_stays_one() -> None:
    grey = picture(0, 40, 60)[..., :1].repeat(3, axis=2)  # JPEG halves the resolution of colours
    found = restored(PIL.Image.fromarray(grey), ".jpg", quality=95)
    assert found.format == "JPEG"
    assert abs(np.array(found).astype(int) - (255 - grey)).mean() < 4


# ---- other modes than 8-bit RGB


def written(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def test_palettes_and_cmyk_become_rgb_and_transparency_stays() -> None:
    palette = PIL.Image.fromarray(picture(0, 20, 30)).quantize(16)
    assert np.array_equal(np.array(restored(palette)), 255 - np.array(palette.convert("RGB")))
    clear = np.array(restored(palette, transparency=0))
    assert np.array_equal(clear[..., 3] == 0, np.array(palette) == 0)
    cmyk = PIL.Image.fromarray(picture(0, 20, 30)).convert("CMYK")
    found = PIL.Image.open(io.BytesIO(restore_file(Negative(), written(cmyk, "TIFF"), "in.tif", ".tif", CPU)))
    assert np.array_equal(np.array(found), 255 - np.array(cmyk.convert("RGB")))


def test_alpha_that_the_output_format_lacks_is_refused() -> None:
    misnamed = written(PIL.Image.fromarray(np.dstack([picture(0, 20, 30), picture(1, 20, 30)[..., 0]])), "PNG")
    with pytest.raises(InputError, match=r"in\.jpg.*alpha.*\.png"):
        restore_file(Negative(), misnamed, "in.jpg", ".jpg", CPU)


def test_several_pictures_in_one_file_and_32_bits_are_refused() -> None:
    page = PIL.Image.fromarray(picture(0, 20, 30))
    pages = written(page, "TIFF", save_all=True, append_images=[page])
    floats = written(PIL.Image.fromarray(picture(0, 20, 30)[..., 0].astype(np.float32)), "TIFF")
    for data, message in ((pages, "holds 2 pictures"), (floats, ".*mode F")):
        with pytest.raises(InputError, match=rf"in\.tif: {message}"):
            restore_file(Negative(), data, "in.tif", ".tif", CPU)


def test_a_phones_mpo_is_one_photograph() -> None:
    page, depth = PIL.Image.new("RGB", (30, 20), (40, 40, 40)), PIL.Image.new("RGB", (30, 20))
    data = written(page, "MPO", save_all=True, append_images=[depth], quality=95)
    found = PIL.Image.open(io.BytesIO(restore_file(Negative(), data, "in.jpg", ".jpg", CPU)))
    assert found.format == "JPEG"
    assert abs(np.array(found).astype(int) - 215).max() <= 2


# ---- models


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "runs") if request.param == "folder" else join(request.getfixturevalue("bucket"), "runs")


def test_a_run_and_its_file_give_the_newest_generator(root: str) -> None:
    write_run(open_store(join(root, "r")), 1, 2)
    open_store(root).put("generator.safetensors", weights_of(RECIPE, 2))
    blurred = torch.rand(1, 3, 20, 24) * 2 - 1
    torch.manual_seed(2)
    expected = build_generator(RECIPE).eval()(blurred)
    for url in (join(root, "r"), join(root, "generator.safetensors")):
        assert torch.equal(load_model(url, CPU)(blurred), expected)


def test_a_run_gives_its_best_generator_and_a_checkpoint_its_own(root: str) -> None:
    checkpoints = Checkpoints(open_store(join(root, "r")), keep=9)
    for seed, score in ((1, 20.0), (2, 25.0), (3, 24.0)):
        checkpoints.save(8 * seed, {"generator.safetensors": weights_of(RECIPE, seed)}, score)
    checkpoints.wait()
    for url, seed in (("r", 2), ("r/checkpoints/000000000024", 3), ("r/checkpoints/000000000008/", 1)):
        assert read_model(join(root, url)) == weights_of(RECIPE, seed)
    with pytest.raises(InputError, match="no valid checkpoint"):
        read_model(join(root, "r/checkpoints/000000000032"))


def test_a_run_without_a_checkpoint_is_refused(root: str) -> None:
    with pytest.raises(InputError, match=r"nothing: .*--model"):
        load_model(join(root, "nothing"), CPU)


def test_a_damaged_generator_is_named_and_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(open_store(tmp_path), 1)
    path = tmp_path / "checkpoints" / "000000000008" / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="no valid checkpoint"):
        load_model(str(tmp_path), CPU)
    assert "000000000008/generator.safetensors: sha256 differs" in caplog.text


def test_another_architecture_is_refused_with_the_first_tensor_that_differs(tmp_path: Path) -> None:
    other = replace(RECIPE, generator=replace(RECIPE.generator, filters=4))
    torch.manual_seed(0)
    data = safetensors.torch.save(build_generator(RECIPE).state_dict(), metadata={"recipe": recipes.to_json(other)})
    (tmp_path / "g.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"tensor first\.1\.weight is \[2, 3, 7, 7\], expected \[4, 3, 7, 7\]"):
        load_model(str(tmp_path / "g.safetensors"), CPU)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "executed").touch, ())

    (tmp_path / "g.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"g\.safetensors: .*recipe"):
        load_model(str(tmp_path / "g.safetensors"), CPU)
    assert not (tmp_path / "executed").exists()


# ---- inputs and outputs


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def places(photos: list[Photo]) -> list[tuple[str, str]]:
    return [(photo.place, photo.target) for photo in photos]


def test_folders_keep_their_sub_folders_and_names(tmp_path: Path) -> None:
    touched(tmp_path, "in/a.png", "in/sub/b.JPG", "in/notes.txt", "c.png")
    found = plan([str(tmp_path / "in"), str(tmp_path / "c.png")], str(tmp_path / "out"))
    assert places(found) == [
        (str(tmp_path / "in/a.png"), "a.png"),
        (str(tmp_path / "in/sub/b.JPG"), "sub/b.JPG"),
        (str(tmp_path / "c.png"), "c.png"),
    ]


def test_buckets_are_read_like_folders(bucket: str, tmp_path: Path) -> None:
    for key in ("in/a.png", "in/sub/b.JPG", "in/notes.txt", "c.png"):
        open_store(bucket).put(key, b"")
    found = plan([f"{bucket}/in/", f"{bucket}/c.png"], str(tmp_path))
    assert places(found) == [
        (f"{bucket}/in/a.png", "a.png"),
        (f"{bucket}/in/sub/b.JPG", "sub/b.JPG"),
        (f"{bucket}/c.png", "c.png"),
    ]
    with pytest.raises(InputError, match=r"in/a\.png is an input and would be overwritten"):
        plan([f"{bucket}/in"], f"{bucket}/in/")


def test_keys_of_one_file_name_are_refused_and_kept_apart_in_a_bucket(
    bucket: str, s3_server: dict[str, str], tmp_path: Path
) -> None:
    s3, name = boto3.session.Session().client("s3"), bucket.removeprefix("s3://")
    for key in ("twice/sub/a.png", "twice/sub//a.png", "slash//a.png"):
        s3.put_object(Bucket=name, Key=key, Body=b"")
    with pytest.raises(InputError, match=r"twice/sub//?a\.png and .*twice/sub//?a\.png would both become .*sub/a\.png"):
        plan([f"{bucket}/twice"], str(tmp_path))
    assert [photo.target for photo in plan([f"{bucket}/twice"], f"{bucket}/out")] == ["sub//a.png", "sub/a.png"]
    with pytest.raises(InputError, match=r"slash//a\.png: cannot be a file below"):
        plan([f"{bucket}/slash"], str(tmp_path))


def test_two_inputs_with_the_same_name_are_refused(tmp_path: Path) -> None:
    touched(tmp_path, "a/x.png", "b/x.png")
    with pytest.raises(InputError, match=r"a/x\.png and .*b/x\.png would both become"):
        plan([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"))


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    touched(tmp_path, "x.png")
    with pytest.raises(InputError, match=r"x\.png is an input and would be overwritten"):
        plan([str(tmp_path / "x.png")], str(tmp_path))


def test_an_output_folder_within_the_inputs_is_not_restored_again(tmp_path: Path) -> None:
    touched(tmp_path, "in/x.png", "in/out/x.png", "in/outside.png")  # the second one of an earlier run
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in/out", "link/out", "in/../in/out/"):
        assert [photo.target for photo in plan([str(tmp_path / "in")], str(tmp_path / out))] == ["outside.png", "x.png"]
    for out in ("link", "in/out/.."):
        with pytest.raises(InputError, match=r"x\.png is an input and would be overwritten"):
            plan([str(tmp_path / "in")], str(tmp_path / out))


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.png", "no such file or folder"), ("empty", "no photograph"), ("x.doc", "not a supported")],
)
def test_inputs_that_are_no_photographs_are_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.doc").touch()
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        plan([str(tmp_path / name)], str(tmp_path / "out"))


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["restore", *map(str, arguments), "--device", "cpu"])
    restore.main()


def test_a_bad_file_is_listed_and_the_others_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(open_store(tmp_path / "run"), 1)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "c.png"):
        PIL.Image.fromarray(picture(1, 20, 30)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:200])
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, tmp_path / "in", "--out", tmp_path / "out", "--model", tmp_path / "run")
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert "2 of 3 photographs restored" in printed.out
    assert "b.png: does not decode" in printed.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png", "restored-by.json"]


def test_the_same_command_resumes_and_restores_nothing_twice(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(open_store(tmp_path / "run"), 1)
    inputs, out = open_store(join(root, "in")), open_store(join(root, "out"))
    for name in ("a.png", "sub/b.png"):
        inputs.put(name, pictures.encode_png(picture(1, 20, 30)))
    command = [inputs.url, "--out", out.url, "--model", tmp_path / "run"]
    run_command(monkeypatch, *command)
    first = out.get("sub/b.png")
    out.put("sub/b.png", b"not made again")
    out.delete("a.png")  # as if interrupted
    run_command(monkeypatch, *command)
    assert "1 of 2 photographs restored" in capsys.readouterr().out.splitlines()[-1]
    assert out.list() == ["a.png", "restored-by.json", "sub/b.png"]
    assert out.get("sub/b.png") == b"not made again"
    run_command(monkeypatch, *command, "--overwrite")
    assert out.get("sub/b.png") == first


def test_outputs_of_another_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.safetensors").write_bytes(weights_of(RECIPE, 1))
    (tmp_path / "new.safetensors").write_bytes(weights_of(RECIPE, 2))
    PIL.Image.fromarray(picture(1, 20, 30)).save(tmp_path / "a.png")
    command = [tmp_path / "a.png", "--out", tmp_path / "out", "--model"]
    run_command(monkeypatch, *command, tmp_path / "old.safetensors")
    old = (tmp_path / "out" / "a.png").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, *command, tmp_path / "new.safetensors")
    assert "restored by another model" in capsys.readouterr().err
    run_command(monkeypatch, *command, tmp_path / "new.safetensors", "--overwrite")
    assert (tmp_path / "out" / "a.png").read_bytes() != old


def test_an_interrupted_overwrite_leaves_nothing_of_the_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.safetensors").write_bytes(weights_of(RECIPE, 1))
    (tmp_path / "new.safetensors").write_bytes(weights_of(RECIPE, 2))
    for name in ("a.png", "b.png"):
        PIL.Image.fromarray(picture(1, 20, 30)).save(tmp_path / name)
    command = [tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out", "--model"]
    run_command(monkeypatch, *command, tmp_path / "old.safetensors")
    old = (tmp_path / "out" / "b.png").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("deblur.inference.bulk.restore", lambda *_: sys.exit(130))
        with pytest.raises(SystemExit, match="130"):
            run_command(monkeypatch, *command, tmp_path / "new.safetensors", "--overwrite")
    run_command(monkeypatch, *command, tmp_path / "new.safetensors")
    assert (tmp_path / "out" / "b.png").read_bytes() != old


def test_other_files_in_the_output_are_not_mistaken_for_restored_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.safetensors").write_bytes(weights_of(RECIPE))
    touched(tmp_path, "out/a.png", "out/other.png")
    PIL.Image.fromarray(picture(1, 20, 30)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, tmp_path / "a.png", "--out", tmp_path / "out", "--model", tmp_path / "m.safetensors")
    assert "other photographs of these names" in capsys.readouterr().err


def test_an_unexpected_error_of_one_photograph_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.safetensors").write_bytes(weights_of(RECIPE))
    for name, width in (("a.png", 30), ("b.png", 31)):
        PIL.Image.fromarray(picture(1, 20, width)).save(tmp_path / name)
    plain = bulk.restore_picture

    def unforeseen(generator: object, pixels: np.ndarray, **options: object) -> np.ndarray:
        if pixels.shape[1] == 30:
            raise RuntimeError("not enough memory: you tried to allocate 5 bytes")
        return plain(generator, pixels, **options)

    monkeypatch.setattr(bulk, "restore_picture", unforeseen)
    inputs = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(SystemExit, match="1"):
        run_command(monkeypatch, *inputs, "--out", tmp_path / "out", "--model", tmp_path / "m.safetensors")
    assert "a.png: cannot be restored (RuntimeError: not enough memory" in capsys.readouterr().err
    assert (tmp_path / "out" / "b.png").exists()


def test_the_recipe_of_a_file_is_plain_json() -> None:
    data = weights_of(RECIPE)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["recipe"])["generator"]["filters"] == 2
