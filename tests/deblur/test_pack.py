"""Packing: layouts, splits, cuts, refusals, and interruptions."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter1d

from cluster.errors import InputError
from cluster.storage import join, open_store
from deblur.data import pictures
from deblur.data.blur import blurred
from deblur.data.camera_blur import CameraBlurSettings, camera_blurred
from deblur.data.dataset import Dataset, open_dataset
from deblur.data.index import Index, Split, read_index, read_table
from deblur.data.loader import pairs_of
from deblur.data.pack_one import starts
from deblur.data.pack_settings import PackSettings
from deblur.data.packing import check, pack, summary
from deblur.data.sample_set import PHOTOGRAPHS, blurred_photographs
from tests.datasets import picture

Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

SCENES = {"train": ["GOPR01_00_00", "GOPR02_00_00", "GOPR03_00_00"], "test": ["GOPR09_00_00"]}


@pytest.fixture
def gopro(tmp_path: Path) -> Path:
    """A small tree of GOPRO_Large's layout: 3 train scenes and 1 test scene of 4 pairs each."""
    root = tmp_path / "GOPRO_Large"
    for split, scenes in SCENES.items():
        for scene in scenes:
            for nth in range(4):
                for kind in ("blur", "blur_gamma", "sharp"):
                    write(
                        root / split / scene / kind / f"{nth:06d}.png",
                        picture(hash_of(split, scene, nth, kind), 40, 50),
                    )
    return root


def hash_of(*parts: object) -> int:
    return zlib.crc32("/".join(map(str, parts)).encode())


def write(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)


def packed(source: Path | str, out: Path, **more: object) -> Index:
    return pack(PackSettings(source=str(source), out=str(out), **{"validation_scenes": 1, **more}))


def keys(folder: Path, split: Split) -> list[str]:
    store = open_store(folder)
    return [sample.key for shard in split.shards for sample in read_table(store, shard)]


def objects(folder: Path) -> dict[str, bytes]:
    return {key: open_store(folder).get(key) for key in open_store(folder).list()}


def test_a_gopro_tree_is_packed_completely_with_its_files_bytes(gopro: Path, tmp_path: Path) -> None:
    index = packed(gopro, tmp_path / "out", blur="blur_gamma")
    assert {name: split.num_samples for name, split in index.splits.items()} == {"train": 8, "validation": 4, "test": 4}
    store = open_store(tmp_path / "out")
    for split_name, split in index.splits.items():
        for key, (blurry, sharp) in zip(
            keys(tmp_path / "out", split),
            pairs_of(Dataset(store, index), split, range(split.num_samples), 1),
            strict=True,
        ):
            scene, nth = key.rsplit("-", 1)
            folder = gopro / ("test" if split_name == "test" else "train") / scene
            assert np.array_equal(blurry, np.array(PIL.Image.open(folder / "blur_gamma" / f"{nth}.png")))
            assert np.array_equal(sharp, np.array(PIL.Image.open(folder / "sharp" / f"{nth}.png")))


def test_png_files_are_kept_byte_for_byte(gopro: Path, tmp_path: Path) -> None:
    index = packed(gopro, tmp_path / "out", blur="blur")
    data = open_store(tmp_path / "out").get(index.splits["test"].shards[0].name)
    assert (gopro / "test" / "GOPR09_00_00" / "blur" / "000002.png").read_bytes() in data


def test_a_png_for_another_display_is_not_kept_as_it_is(tmp_path: Path) -> None:
    linear = PIL.PngImagePlugin.PngInfo()
    linear.add(b"gAMA", (100_000).to_bytes(4, "big"))
    stored = {"sharp": picture(0, 30, 40), "blur": uniform_filter1d(picture(0, 30, 40), 5, axis=1)}
    for side, pixels in stored.items():
        for scene in ("GOPR01", "GOPR02"):
            write(tmp_path / "in" / "train" / scene / side / "1.png", pixels, pnginfo=linear)
    index = packed(tmp_path / "in", tmp_path / "out")
    dataset = Dataset(open_store(tmp_path / "out"), index)
    (pair,) = pairs_of(dataset, index.splits["train"], range(1), 1)
    for found, side in zip(pair, ("blur", "sharp"), strict=True):
        assert np.array_equal(found, (255 * (stored[side] / 255) ** (1 / 2.2)).round())


def test_no_scene_is_in_two_splits(gopro: Path, tmp_path: Path) -> None:
    index = packed(gopro, tmp_path / "out", blur="blur", validation_scenes=2)
    scenes = {
        name: {key.rsplit("-", 1)[0] for key in keys(tmp_path / "out", split)} for name, split in index.splits.items()
    }
    assert len(scenes["validation"]) == 2
    assert not scenes["train"] & scenes["validation"]
    assert scenes["train"] | scenes["validation"] == set(SCENES["train"])
    assert scenes["test"] == set(SCENES["test"])


def test_training_samples_are_shuffled_across_scenes_and_the_others_are_not(gopro: Path, tmp_path: Path) -> None:
    index = packed(gopro, tmp_path / "out", blur="blur", validation_scenes=0)
    assert keys(tmp_path / "out", index.splits["train"]) != sorted(keys(tmp_path / "out", index.splits["train"]))
    assert keys(tmp_path / "out", index.splits["test"]) == sorted(keys(tmp_path / "out", index.splits["test"]))


def test_the_same_input_gives_the_same_bytes_of_every_object(gopro: Path, tmp_path: Path) -> None:
    for name in "ab":
        packed(gopro, tmp_path / name, blur="blur", cut=32, step=16)
    assert objects(tmp_path / "a") == objects(tmp_path / "b")


def test_flat_folders_are_paired_by_name(tmp_path: Path) -> None:
    for scene in ("GOPR01_11_00", "GOPR02_11_00"):
        for nth in range(3):
            for side in "AB":
                write(tmp_path / "flat" / side / f"{scene}_{nth:06d}.png", picture(hash_of(scene, nth, side), 40, 50))
    index = packed(tmp_path / "flat", tmp_path / "out")
    assert {name: split.num_samples for name, split in index.splits.items()} == {"train": 3, "validation": 3}
    store, split = open_store(tmp_path / "out"), index.splits["validation"]
    for key, (blurry, sharp) in zip(
        keys(tmp_path / "out", split), pairs_of(Dataset(store, index), split, range(3), 1), strict=True
    ):
        assert np.array_equal(blurry, np.array(PIL.Image.open(tmp_path / "flat" / "A" / f"{key}.png")))
        assert np.array_equal(sharp, np.array(PIL.Image.open(tmp_path / "flat" / "B" / f"{key}.png")))


def test_photographs_are_blurred_by_their_own_seeds(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.png", "c.png"):
        write(tmp_path / "in" / name, picture(hash_of(name), 60, 70))
    one = packed(tmp_path / "in", tmp_path / "one")
    (tmp_path / "in" / "c.png").unlink()
    packed(tmp_path / "in", tmp_path / "two", validation_scenes=0)
    assert sum(split.num_samples for split in one.splits.values()) == 3

    def blur_of_b(out: Path) -> np.ndarray:
        store, index = open_store(out), read_index(open_store(out))
        return next(
            pair[0]
            for split in index.splits.values()
            for key, pair in zip(
                keys(out, split), pairs_of(Dataset(store, index), split, range(split.num_samples), 1), strict=True
            )
            if key == "sub-b"
        )

    assert np.array_equal(blur_of_b(tmp_path / "one"), blur_of_b(tmp_path / "two"))
    assert not np.array_equal(blur_of_b(tmp_path / "one"), np.array(PIL.Image.open(tmp_path / "in" / "sub" / "b.png")))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write(tmp_path / "photographs" / f"{name}.png", picture(hash_of(name), 60, 70))
    return tmp_path / "photographs"


def test_blurs_of_a_photograph_are_of_one_scene_and_differ(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    index = packed(photographs, out, blur_model="camera", blurs_per_photo=3)
    assert {name: split.num_samples for name, split in index.splits.items()} == {"train": 6, "validation": 3}
    (held_out,) = {key.rsplit("-", 1)[0] for key in keys(out, index.splits["validation"])}
    assert sorted(keys(out, index.splits["validation"])) == [f"{held_out}-{variant:02d}" for variant in range(3)]
    assert not any(key.startswith(f"{held_out}-") for key in keys(out, index.splits["train"]))
    dataset, split = Dataset(open_store(out), index), index.splits["validation"]
    found = dict(zip(keys(out, split), pairs_of(dataset, split, range(3), 1), strict=True))
    assert len({blurry.tobytes() for blurry, _ in found.values()}) == 3
    for key, (blurry, sharp) in found.items():
        assert np.array_equal(sharp, np.array(PIL.Image.open(photographs / f"{held_out}.png")))
        seed = (0, zlib.crc32(held_out.encode()), int(key[-2:]))
        assert np.array_equal(blurry, camera_blurred(sharp, seed))


@pytest.mark.parametrize("blur_model", ["paper", "camera"])
def test_several_blurs_give_the_same_bytes_each_time(photographs: Path, tmp_path: Path, blur_model: str) -> None:
    for name in "ab":
        packed(photographs, tmp_path / name, blur_model=blur_model, blurs_per_photo=2)
    assert objects(tmp_path / "a") == objects(tmp_path / "b")


def test_more_blurs_per_photograph_keep_the_first_ones(photographs: Path, tmp_path: Path) -> None:
    found = []
    for count in (1, 3):
        out = tmp_path / str(count)
        index = packed(photographs, out, blur_model="camera", blurs_per_photo=count, validation_scenes=0)
        split = index.splits["train"]
        pairs = pairs_of(Dataset(open_store(out), index), split, range(split.num_samples), 1)
        found.append({key: blurry for key, (blurry, _) in zip(keys(out, split), pairs, strict=True)})
    assert all(np.array_equal(found[0][name], found[1][f"{name}-00"]) for name in "abc")


def test_the_index_names_the_blur_of_photographs(photographs: Path, tmp_path: Path) -> None:
    packed(photographs, tmp_path / "out", blur_model="camera", blurs_per_photo=2)
    made = read_index(open_store(tmp_path / "out")).made
    assert (made["blur_model"], made["blurs_per_photo"]) == ("camera", 2)
    assert made["blur_settings"] == json.loads(json.dumps(asdict(CameraBlurSettings())))


def test_the_default_blur_leaves_the_index_as_it_was(photographs: Path, tmp_path: Path) -> None:
    index = packed(photographs, tmp_path / "out")
    made = {"seed": 0, "cut": None, "shard_mb": 128, "layout": "photographs", "blur": None, "validation_scenes": 1}
    assert index.made == made
    split = index.splits["train"]
    pairs = pairs_of(Dataset(open_store(tmp_path / "out"), index), split, range(2), 1)
    for key, (blurry, sharp) in zip(keys(tmp_path / "out", split), pairs, strict=True):
        assert np.array_equal(blurry, blurred(sharp, (0, zlib.crc32(key.encode()))))


@given(length=st.integers(1, 300), cut=st.integers(1, 100), data=st.data())
def test_squares_cover_the_picture_and_stay_inside(length: int, cut: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(1, cut))
    covered = np.zeros(length, int)
    for start in starts(length, cut, step):
        assert 0 <= start <= max(0, length - cut)
        covered[start : start + cut] += 1
    assert covered.min() >= 1


def test_only_training_pictures_are_cut(gopro: Path, tmp_path: Path) -> None:
    index = packed(gopro, tmp_path / "out", blur="blur", cut=32, step=16)
    # 40x50: rows at 0 and 8, columns at 0, 16 and 18
    assert index.splits["train"].num_samples == 8 * 2 * 3
    assert index.splits["train"].smallest == (32, 32)
    assert index.splits["validation"].smallest == index.splits["test"].smallest == (40, 50)
    store, split = open_store(tmp_path / "out"), index.splits["train"]
    for key, (blurry, sharp) in zip(
        keys(tmp_path / "out", split), pairs_of(Dataset(store, index), split, range(split.num_samples), 1), strict=True
    ):
        scene, nth, row, column = key.rsplit("-", 3)
        top, left = int(row[1:]), int(column[1:])
        for side, pixels in (("blur", blurry), ("sharp", sharp)):
            whole = np.array(PIL.Image.open(gopro / "train" / scene / side / f"{nth}.png"))
            assert np.array_equal(pixels, whole[top : top + 32, left : left + 32])


def test_a_killed_pack_can_be_repeated_with_the_same_result(gopro: Path, tmp_path: Path) -> None:
    packed(gopro, tmp_path / "straight", blur="blur", shard_mb=1)
    script = """
        import os, signal
        from cluster.storage import folder as storage
        from deblur.data.packing import PackSettings, pack
        real, left = storage.FolderStore.put, [1]
        def put(self, key, data):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            real(self, key, data)
        storage.FolderStore.put = put
        pack(PackSettings(source=GOPRO, out=OUT, blur="blur", validation_scenes=1, shard_mb=1))
    """
    script = f"GOPRO, OUT = {str(gopro)!r}, {str(tmp_path / 'killed')!r}\n" + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    left_behind = tmp_path / "killed" / "train" / "000099.tar"
    left_behind.parent.mkdir(parents=True, exist_ok=True)
    left_behind.write_bytes(b"of an earlier pack with more shards")
    assert not (tmp_path / "killed" / "index.json").exists()
    foreign = tmp_path / "killed" / "train" / "backup.tar"
    foreign.write_bytes(b"somebody's own")
    packed(gopro, tmp_path / "killed", blur="blur", shard_mb=1)
    assert foreign.read_bytes() == b"somebody's own"
    foreign.unlink()
    assert objects(tmp_path / "killed") == objects(tmp_path / "straight")


def test_a_bucket_gets_the_bytes_of_a_folder(gopro: Path, tmp_path: Path, bucket: str) -> None:
    packed(gopro, tmp_path / "out", blur="blur")
    pack(PackSettings(source=str(gopro), out=join(bucket, "gopro"), blur="blur", validation_scenes=1))
    store = open_store(join(bucket, "gopro"))
    assert {key: store.get(key) for key in store.list()} == objects(tmp_path / "out")


def test_the_summary_says_whether_gopro_is_complete(gopro: Path, tmp_path: Path) -> None:
    text = summary(packed(gopro, tmp_path / "out", blur="blur"))
    assert "train: 8 samples" in text
    assert "NOT the complete GOPRO_Large, which has 2,103 train, 1,111 test pairs" in text


def test_the_held_out_photograph_is_in_no_other_split() -> None:
    names = [name for split in PHOTOGRAPHS.values() for name in split]
    assert len(names) == len(set(names))
    (held_out,) = blurred_photographs("test")
    assert np.array_equal(held_out.blurred, blurred(held_out.sharp, (3, 0, 0)))
    assert not np.array_equal(held_out.blurred, held_out.sharp)


# ---- refusals, before anything is written


def refused(match: str, source: Path | str, out: Path, **more: object) -> None:
    with pytest.raises(InputError, match=match):
        packed(source, out, **more)
    assert not open_store(out).list(), "nothing must be written"


def test_a_gopro_tree_without_blur_flag_is_refused(gopro: Path, tmp_path: Path) -> None:
    refused(r"--blur blur .*--blur blur_gamma", gopro, tmp_path / "out")


def test_a_blur_for_another_layout_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", picture(0, 40, 50))
    refused("--blur blur: .*no blurred pictures", tmp_path / "in", tmp_path / "out", blur="blur")


@pytest.mark.parametrize("more", [{"blur_model": "camera"}, {"blurs_per_photo": 2}], ids=["model", "count"])
def test_blur_for_pictures_that_are_blurred_already_is_refused(
    gopro: Path, tmp_path: Path, more: dict[str, object]
) -> None:
    refused("--blurs-per-photo", gopro, tmp_path / "out", blur="blur", **more)
    refused("--blurs-per-photo", "samples", tmp_path / "out", **more)


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_blur_per_photograph_is_refused(photographs: Path, tmp_path: Path, count: int) -> None:
    refused(f"--blurs-per-photo is {count}", photographs, tmp_path / "out", blurs_per_photo=count)


def test_the_folder_above_a_gopro_tree_gives_the_same_dataset(gopro: Path, tmp_path: Path) -> None:
    above = packed(gopro.parent, tmp_path / "elsewhere" / "one", blur="blur")
    assert above.digest == packed(gopro, tmp_path / "elsewhere" / "two", blur="blur").digest


@pytest.mark.parametrize(
    ("inside", "message"),
    [("test", "no training pairs"), ("train/GOPR01_00_00", "only 1 scenes"), ("train/GOPR01_00_00/blur", "--pairs")],
)
def test_a_wrong_folder_of_a_gopro_tree_is_refused(gopro: Path, tmp_path: Path, inside: str, message: str) -> None:
    refused(message, gopro / inside, tmp_path / "elsewhere" / "out", blur=None if "blur" in inside else "blur")


def test_two_pictures_with_the_same_stem_are_refused_with_both_names(tmp_path: Path) -> None:
    for name in ("A/a_1.png", "A/a_1.jpg", "B/a_1.png"):
        write(tmp_path / "flat" / name, picture(0, 40, 50))
    refused(r"a_1\.jpg and .*a_1\.png would be the same", tmp_path / "flat", tmp_path / "out")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(r"nowhere: no such folder", tmp_path / "nowhere", tmp_path / "out")


def test_a_folder_without_pictures_is_refused_with_the_layouts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(r"empty: no pictures.*input and target", tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize("side", ["blur", "sharp"])
def test_an_unpaired_picture_is_refused_by_name(gopro: Path, tmp_path: Path, side: str) -> None:
    other = {"blur": "sharp", "sharp": "blur"}[side]
    (gopro / "train" / "GOPR02_00_00" / other / "000001.png").unlink()
    missing = rf"GOPR02_00_00/{side}/000001\.png: has no (sharp|blurred) counterpart"
    refused(missing, gopro, tmp_path / "out", blur="blur")


def test_different_sizes_are_refused_with_both_names_and_sizes(gopro: Path, tmp_path: Path) -> None:
    write(gopro / "test" / "GOPR09_00_00" / "blur" / "000003.png", picture(0, 40, 51))
    sizes = r"blur/000003\.png is 51x40 but .*sharp/000003\.png is 50x40"
    refused(sizes, gopro, tmp_path / "out", blur="blur")


def test_too_many_validation_scenes_are_refused_with_the_maximum(gopro: Path, tmp_path: Path) -> None:
    refused(
        r"--validation-scenes 3: .*only 3 scenes.*2 or less", gopro, tmp_path / "out", blur="blur", validation_scenes=3
    )


def test_a_file_that_is_no_picture_is_refused_by_name(gopro: Path, tmp_path: Path) -> None:
    (gopro / "train" / "GOPR01_00_00" / "sharp" / "000000.png").write_bytes(b"no picture")
    refused(r"sharp/000000\.png: not a picture", gopro, tmp_path / "out", blur="blur")


def test_a_truncated_picture_fails_the_pack_without_an_index(gopro: Path, tmp_path: Path) -> None:
    path = gopro / "train" / "GOPR01_00_00" / "sharp" / "000000.png"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"sharp/000000\.png: does not decode"):
        packed(gopro, tmp_path / "out", blur="blur")
    assert "index.json" not in open_store(tmp_path / "out").list()


def test_damaged_pictures_are_all_named_and_left_out_up_to_a_share(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = [gopro / "train" / f"GOPR0{n}_00_00" / "sharp" / "000001.png" for n in (1, 3)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"2 of 16 pairs are bad, more than --max-bad-share 0\.1"):
        packed(gopro, tmp_path / "out", blur="blur", max_bad_share=0.1)
    assert all(str(path) in capsys.readouterr().out for path in damaged[:1])
    index = packed(gopro, tmp_path / "out", blur="blur", max_bad_share=0.2)
    assert sum(split.num_samples for split in index.splits.values()) == 14
    lines = capsys.readouterr().out
    assert all(str(path) in lines for path in damaged)


def test_overwriting_keeps_the_old_dataset_until_the_new_one_is_complete(gopro: Path, tmp_path: Path) -> None:
    packed(gopro, tmp_path / "out", blur="blur")
    before = objects(tmp_path / "out")
    path = gopro / "train" / "GOPR01_00_00" / "sharp" / "000000.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-400])
    with pytest.raises(InputError, match="are bad"):
        packed(gopro, tmp_path / "out", blur="blur_gamma", overwrite=True)
    after = objects(tmp_path / "out")
    assert {key: after[key] for key in before} == before
    path.write_bytes(whole)
    for blur in ("blur_gamma", "blur", "blur_gamma"):
        index = packed(gopro, tmp_path / "out", blur=blur, overwrite=True)
        assert index.digest == packed(gopro, tmp_path / blur, blur=blur, overwrite=True).digest
        assert len(objects(tmp_path / "out")) == len(before), "no shard of an older dataset is left"
        dataset = open_dataset(str(tmp_path / "out"))
        split = dataset.index.splits["test"]
        key, (blurry, _) = (
            keys(tmp_path / "out" / index.folder, split)[0],
            next(iter(pairs_of(dataset, split, range(1), 1))),
        )
        file = gopro / "test" / key.rsplit("-", 1)[0] / blur / f"{key.rsplit('-', 1)[1]}.png"
        assert np.array_equal(blurry, np.array(PIL.Image.open(file)))


def test_both_sides_are_turned_by_their_own_orientation(tmp_path: Path) -> None:
    """One side stored upright, the other turned by 180 or 90 degrees with an EXIF orientation that says so."""
    sharp = np.array(PIL.Image.fromarray(picture(1, 12, 16)).resize((200, 140)))
    soft = uniform_filter1d(sharp, 3, axis=1)
    for name, orientation, stored in (("1", 3, soft[::-1, ::-1]), ("2", 6, np.rot90(soft)), ("3", 1, soft)):
        exif = PIL.Image.Exif()
        exif[0x112] = orientation
        write(tmp_path / "in" / "A" / f"{name}.png", np.ascontiguousarray(stored), exif=exif)
        write(tmp_path / "in" / "B" / f"{name}.png", sharp)
    index = packed(tmp_path / "in", tmp_path / "out", validation_scenes=0)
    dataset, split = Dataset(open_store(tmp_path / "out"), index), index.splits["train"]
    for blurry, crisp in pairs_of(dataset, split, range(3), 1):
        assert np.array_equal(blurry, soft)
        assert np.array_equal(crisp, sharp)


def test_grey_pictures_of_16_bits_keep_their_brightness(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 60 * 70).reshape(60, 70).astype(np.uint16)
    write(tmp_path / "in" / "A" / "1.png", grey)
    write(tmp_path / "in" / "B" / "1.png", 65535 - grey)
    index = packed(tmp_path / "in", tmp_path / "out", validation_scenes=0)
    ((blurry, _),) = pairs_of(Dataset(open_store(tmp_path / "out"), index), index.splits["train"], range(1), 1)
    assert np.array_equal(blurry[..., 0], (grey / 257).round())


def test_combined_pictures_are_halved(tmp_path: Path) -> None:
    left, right = picture(1, 40, 50), picture(2, 40, 50)
    write(tmp_path / "in" / "train" / "1.png", np.concatenate([left, right], 1))
    index = packed(tmp_path / "in", tmp_path / "out", validation_scenes=0, layout="combined")
    ((blurry, sharp),) = pairs_of(Dataset(open_store(tmp_path / "out"), index), index.splits["train"], range(1), 1)
    assert np.array_equal(blurry, left)
    assert np.array_equal(sharp, right)


# ---- pairs whose sides do not match


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Four photographs, and each moved by 9 pixels while the shutter is open, as A and B."""
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        sharp = np.ascontiguousarray(getattr(skimage.data, name)()[:256, :320])
        write(tmp_path / "real" / "B" / f"{name}.png", sharp)
        write(tmp_path / "real" / "A" / f"{name}.png", uniform_filter1d(sharp, 9, axis=1))
    return tmp_path / "real"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a[6:, 4:], b[:-6, :-4]), "shifted by 4 pixels across and 6 down"),
        (lambda a, b: (a[::-1, ::-1], b), "turned by 180 degrees"),
        (lambda a, b: (a[:, ::-1], b), "mirrored"),
        (lambda a, b: (b, a), "sides may be swapped"),
        (lambda a, b: (a, np.roll(b[..., ::-1], (100, 150), (0, 1))), "shifted|different pictures"),
        (lambda a, b: (np.rot90(a), b), "one is turned"),
        (lambda a, b: (a, b.repeat(2, 0).repeat(2, 1)), "one is 2 times the other"),
    ],
    ids=["shifted", "turned", "mirrored", "swapped", "other", "quarter", "factor"],
)
def test_pairs_that_do_not_match_are_refused_by_name(real: Path, tmp_path: Path, change: Change, message: str) -> None:
    files = [real / side / "chelsea.png" for side in "AB"]
    for path, pixels in zip(files, change(*(np.array(PIL.Image.open(path)) for path in files)), strict=True):
        write(path, np.ascontiguousarray(pixels))
    refused(rf"1 of 4 pairs are bad.*chelsea\.png.*({message})", real, tmp_path / "out")
    with pytest.raises(InputError, match=message):
        check(PackSettings(source=str(real), check=True))


def test_check_compares_without_writing(real: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert "train 2, validation 2" in check(PackSettings(source=str(real), check=True))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_existing_dataset_is_kept_without_overwrite(gopro: Path, tmp_path: Path) -> None:
    packed(gopro, tmp_path / "out", blur="blur")
    before = objects(tmp_path / "out")
    with pytest.raises(InputError, match="--overwrite"):
        packed(gopro, tmp_path / "out", blur="blur_gamma")
    assert objects(tmp_path / "out") == before
    packed(gopro, tmp_path / "out", blur="blur_gamma", overwrite=True)
    assert read_index(open_store(tmp_path / "out")).made["blur"] == "blur_gamma"


def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1999)
    png = io.BytesIO()
    PIL.Image.fromarray(picture(0, 40, 50)).save(png, "PNG")
    with pytest.raises(InputError, match=r"bomb\.png: 50x40 is over the limit"):
        pictures.decode(png.getvalue(), "bomb.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "x"], "nowhere: no such folder"),
        (["samples", "--out", "x", "--step", "9"], "needs a --cut"),
    ],
)
def test_the_command_ends_with_one_line_and_a_code(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deblur.pack", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
