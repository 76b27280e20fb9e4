"""Layouts of public datasets, in the shape in which they are published, and trees that are nearly one."""

import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.storage import join, open_store
from deblur.data.files import File, walk
from deblur.data.layouts import find, match_folders
from deblur.data.pair_lists import read_table
from deblur.data.pairs import Found, describe

Triple = tuple[str, str, str]


def make(root: Path, *names: str) -> Path:
    """Empty files: layouts are found by names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs_of(found: Found, root: Path) -> set[Triple]:
    return {
        (split, *(Path(file.root, file.key).relative_to(root).as_posix() for file in (pair.blurred, pair.sharp)))
        for split, pairs in found.splits.items()
        for pair in pairs
    }


PUBLISHED: dict[str, tuple[str, set[Triple]]] = {
    # https://seungjunnah.github.io/Datasets/gopro
    "GOPRO_Large": (
        "gopro",
        {
            (split, f"{split}/{scene}/blur_gamma/{n}.png", f"{split}/{scene}/sharp/{n}.png")
            for split, scene in (("train", "GOPR0372_07_00"), ("train", "GOPR0374_11_00"), ("test", "GOPR0384_11_00"))
            for n in ("000047", "000048")
        },
    ),
    "GOPRO_Large as unpacked into a folder": (
        "gopro",
        {
            (split, f"GOPRO_Large/{split}/{scene}/blur/{n}.png", f"GOPRO_Large/{split}/{scene}/sharp/{n}.png")
            for split, scene in (("train", "GOPR0372_07_00"), ("test", "GOPR0384_11_00"))
            for n in ("000047", "000048")
        },
    ),
    # MPRNet, HINet and Restormer: Datasets/{train,test}/GoPro/{input,target}
    "MPRNet": (
        "input/target",
        {
            (split, f"{split}/{name}/input/{scene}-{n}.png", f"{split}/{name}/target/{scene}-{n}.png")
            for split, name, scene in (
                ("train", "GoPro", "GOPR0372_07_00"),
                ("test", "GoPro", "GOPR0384_11_00"),
                ("test", "HIDE", "1fromGOPR0950"),
            )
            for n in ("000047", "000048")
        },
    ),
    # NAFNet: datasets/GoPro/{train,test}/{input,target}
    "NAFNet": (
        "input/target",
        {
            (split, f"GoPro/{split}/input/GOPR0384_11_00-{n}.png", f"GoPro/{split}/target/GOPR0384_11_00-{n}.png")
            for split in ("train", "test")
            for n in ("000001", "000002")
        },
    ),
    # https://github.com/KupynOrest/DeblurGAN/issues/222
    "DeblurGAN#222": (
        "blurred/sharp",
        {(split, f"blurred/{split}/{n}.jpg", f"sharp/{split}/{n}.jpg") for split in ("train", "test") for n in "12"},
    ),
    # https://github.com/KupynOrest/DeblurGAN/issues/123 and combine_A_and_B.py of pix2pix
    "A and B": (
        "flat",
        {(split, f"A/{split}/{n}.png", f"B/{split}/{n}.png") for split in ("train", "test") for n in "12"},
    ),
    # https://seungjunnah.github.io/Datasets/reds
    "REDS": (
        "blur/sharp",
        {
            (name, f"{split}/{split}_blur/{scene}/{n:08d}.png", f"{split}/{split}_sharp/{scene}/{n:08d}.png")
            for name, split in (("train", "train"), ("validation", "val"))
            for scene in ("000", "001")
            for n in range(2)
        },
    ),
    # https://github.com/joanshen0508/HA_deblur
    "HIDE": (
        "unnamed/gt",
        {("train", f"train/{n}fromGOPR0950.png", f"GT/{n}fromGOPR0950.png") for n in (1, 2)}
        | {("test", f"test/test-close-ups/{n}fromGOPR1096.png", f"GT/{n}fromGOPR1096.png") for n in (4, 5)}
        | {("test", f"test/test-long-shot/{n}fromGOPR0863.png", f"GT/{n}fromGOPR0863.png") for n in (7, 8)},
    ),
    # BasicSR, KAIR
    "LQ and GT": ("lq/gt", {("train", f"LQ/{n}.png", f"GT/{n}.png") for n in "123"}),
    "lq and gt below splits": (
        "lq/gt",
        {(split, f"{split}/lq/{n}.png", f"{split}/gt/{n}.png") for split in ("train", "test") for n in "12"},
    ),
    # DVD (Su et al. 2017): quantitative_datasets/VIDEO/{input,GT}
    "DVD": (
        "input/gt",
        {
            ("train", f"quantitative_datasets/{video}/input/{n}.jpg", f"quantitative_datasets/{video}/GT/{n}.jpg")
            for video in ("720p_240fps_1", "IMG_0001")
            for n in ("00000", "00001")
        },
    ),
    # https://github.com/zzh-tech/ESTRNN
    "BSD": (
        "blur/sharp",
        {
            (name, f"BSD_1ms8ms/{split}/{scene}/Blur/RGB/{n}.png", f"BSD_1ms8ms/{split}/{scene}/Sharp/RGB/{n}.png")
            for name, split in (("train", "train"), ("validation", "valid"), ("test", "test"))
            for scene in ("000", "001")
            for n in ("00000000", "00000001")
        },
    ),
    "ends of names": ("blur/sharp", {("train", f"{n}_blur.png", f"{n}_sharp.png") for n in ("0001", "0002")}),
    "begins of names": ("blur/gt", {("train", f"s1/blur_{n}.png", f"s1/gt_{n}.png") for n in "12"}),
    "other endings": (
        "input/target",
        {("test", "test/input/1.jpg", "test/target/1.png"), ("train", "train/input/2.JPG", "train/target/2.png")},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_is_found_pair_by_pair(name: str, tmp_path: Path) -> None:
    layout, wanted = PUBLISHED[name]
    root = make(tmp_path / "data", *(path for _, *both in wanted for path in both))
    found = find(str(root))
    assert found.layout == layout
    assert pairs_of(found, root) == wanted
    assert not found.photographs
    for pairs in found.splits.values():
        assert len({pair.key for pair in pairs}) == len(pairs)


def test_scenes_are_folders_or_the_names_of_numbered_files(tmp_path: Path) -> None:
    scenes = {}
    for name in ("GOPRO_Large", "REDS", "MPRNet", "DVD"):
        root = make(tmp_path / name, *(path for _, *both in PUBLISHED[name][1] for path in both))
        scenes[name] = {pair.scene for pair in find(str(root)).splits["train"]}
    assert scenes == {
        "GOPRO_Large": {"GOPR0372_07_00", "GOPR0374_11_00"},
        "REDS": {"000", "001"},
        "MPRNet": {"GOPR0372_07_00"},
        "DVD": {"720p_240fps_1", "IMG_0001"},
    }


def test_gopro_with_both_kinds_of_blur_needs_a_choice(tmp_path: Path) -> None:
    root = make(tmp_path / "in", *(f"train/S{s}/{k}/1.png" for s in "12" for k in ("blur", "blur_gamma", "sharp")))
    with pytest.raises(InputError, match=r"--blur blur.*--blur blur_gamma"):
        find(str(root))
    for blur in ("blur", "blur_gamma"):
        found = find(str(root), blur=blur)
        assert found.layout == "gopro"
        assert pairs_of(found, root) == {("train", f"train/S{s}/{blur}/1.png", f"train/S{s}/sharp/1.png") for s in "12"}


def test_a_folder_that_is_a_split_says_so(tmp_path: Path) -> None:
    root = make(tmp_path / "test", "S1/blur/1.png", "S1/sharp/1.png", "S2/blur/1.png", "S2/sharp/1.png")
    assert list(find(str(root)).splits) == ["test"]


def test_realblur_by_its_lists(tmp_path: Path) -> None:
    # https://github.com/rimchang/RealBlur: sharp, blurred and ISO in each line
    folder = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
    wanted = {
        (split, f"{folder}/{scene}/blur/blur_{n}.png", f"{folder}/{scene}/gt/gt_{n}.png")
        for split, scene in (("train", "scene001"), ("train", "scene002"), ("test", "scene050"))
        for n in (1, 2)
    }
    root = make(
        tmp_path / "RealBlur", *(path for _, *both in wanted for path in both), f"{folder}/scene003/gt/gt_1.png"
    )
    for split in ("train", "test"):
        lines = [f"{sharp} {blurred} 100" for mine, blurred, sharp in sorted(wanted) if mine == split]
        (root / f"RealBlur_J_{split}_list.txt").write_text("\n".join([*lines, ""]))
    found = find(str(root))
    assert (found.layout, pairs_of(found, root)) == ("list", wanted)
    assert {pair.scene for pair in found.splits["train"]} == {f"{folder}-scene001", f"{folder}-scene002"}


def test_combined_pictures_only_by_their_flag(tmp_path: Path) -> None:
    names = [f"{split}/{n}.jpg" for split in ("train", "val", "test") for n in "12"]
    root = make(tmp_path / "facades", *names)
    with pytest.raises(InputError, match="--layout combined"):
        find(str(root))
    found = find(str(root), "combined")
    assert pairs_of(found, root) == {("validation" if n.startswith("val") else n.split("/")[0], n, n) for n in names}


def test_two_folders_are_paired_by_relative_paths_without_endings(tmp_path: Path) -> None:
    make(tmp_path, "soft/a/1.jpg", "soft/train/2.png", "soft/test/3.png")
    make(tmp_path, "crisp/a/1.png", "crisp/train/2.png", "crisp/test/3.JPEG")
    found = match_folders(str(tmp_path / "soft"), str(tmp_path / "crisp"))
    assert pairs_of(found, tmp_path) == {
        ("train", "soft/a/1.jpg", "crisp/a/1.png"),
        ("train", "soft/train/2.png", "crisp/train/2.png"),
        ("test", "soft/test/3.png", "crisp/test/3.JPEG"),
    }
    make(tmp_path, "soft/4.png")
    with pytest.raises(InputError, match=r"soft/4\.png: has no sharp counterpart"):
        match_folders(str(tmp_path / "soft"), str(tmp_path / "crisp"))


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_a_table_says_everything(tmp_path: Path, suffix: str, delimiter: str) -> None:
    make(tmp_path, "x/1.png", "y/1.png", "x/2.png", "y/2.png", "x/3.png", "y/3.png")
    rows = ["blurred sharp split scene", "x/1.png y/1.png train one", "x/2.png y/2.png val two", "x/3.png y/3.png  "]
    table = tmp_path / f"pairs{suffix}"
    table.write_text("\n".join(row.replace(" ", delimiter) for row in rows))
    found = read_table(table)
    assert pairs_of(found, tmp_path) == {
        ("train", "x/1.png", "y/1.png"),
        ("validation", "x/2.png", "y/2.png"),
        ("train", "x/3.png", "y/3.png"),
    }
    assert [pair.scene for pair in found.splits["train"]] == ["one", "y"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["blurred,sharp", "1.png,9.png"], r"line 2: no such file .*9\.png"),
        (["blurred,sharp", "1.png,1.png"], r"line 2: 1\.png is on both sides"),
        (["input,target", "1.png,2.png"], "line 2: expected the columns blurred and sharp"),
        (["blurred,sharp,split", "1.png,2.png,holdout"], "line 2: the split is 'holdout'"),
        (["blurred,sharp", "1.png,2.png", "2.png,2.png"], "line 3"),
        (["blurred,sharp", "1.png,2.png", "1.png,3.png"], "same key"),
        (["blurred,sharp", "1.png,./1.png"], "is on both sides"),
        (["blurred,sharp", "sharp/4.png,blur/4.png"], "is sharp by its name, but listed as blurred"),
        (["blurred,sharp"], "has no pairs"),
    ],
)
def test_a_wrong_table_is_refused_by_line(tmp_path: Path, rows: list[str], message: str) -> None:
    make(tmp_path, "1.png", "2.png", "3.png", "sharp/4.png", "blur/4.png")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / "pairs.csv")


NEARLY: dict[str, list[str]] = {
    "only the blurred side": ["train/input/1.png", "train/input/2.png"],
    "only the sharp side": ["train/target/1.png"],
    "a sharp picture is missing": ["input/1.png", "input/2.png", "target/1.png"],
    "a blurred picture is missing": ["input/1.png", "target/1.png", "target/2.png"],
    "numbered from 0 and from 1": ["input/0.png", "input/1.png", "target/1.png", "target/2.png"],
    "two candidates for sharp": ["input/1.png", "target/1.png", "gt/1.png"],
    "two candidates for blurred": ["input/1.png", "lq/1.png", "gt/1.png"],
    "two files of one picture": ["input/1.png", "input/1.jpg", "target/1.png"],
    "one side of another split": ["train/input/1.png", "test/target/1.png"],
    "a split for some": ["train/input/1.png", "train/target/1.png", "input/2.png", "target/2.png"],
    "mixed depths": ["input/1.png", "target/1.png", "input/s/2.png", "target/s/2.png"],
    "deeper on one side": ["input/1.png", "target/s/1.png"],
    "a folder of a third kind": ["input/1.png", "target/1.png", "masks/1.png"],
    "crops beside the whole": ["train/input/1.png", "train/target/1.png", "train/input_crops/1.png"],
    "contradicting folders": ["sharp/input/1.png", "sharp/target/1.png"],
    "a name that contradicts its folder": ["input/1_sharp.png", "target/1_blur.png"],
    "two splits in one path": ["train/test/input/1.png", "train/test/target/1.png"],
    "names of sides that are not known": ["blur_crops/1.png", "sharp_crops/1.png"],
    "camel case": ["BlurryImages/1.png", "CleanImages/1.png"],
    "of super-resolution": ["HR/1.png", "LR_x4/1.png"],
    "only A": ["A/1.png", "A/2.png"],
    "CycleGAN": ["trainA/1.png", "trainB/1.png"],
    "splits of pictures without sides": ["train/1.png", "val/1.png"],
    "ends A and B": ["1_A.png", "1_B.png"],
    "the end of one side": ["1_blur.png", "1.png"],
    "a blurred photograph among others": ["holiday.png", "beach_blurred.png"],
    "blurred in other words": ["beach-motionblur-3.png", "beach-3.png", "motion-blurry.png"],
    "HIDE without GT for one": ["train/1.png", "test/2.png", "GT/1.png"],
    "HIDE with a name in both splits": ["train/1.png", "test/1.png", "GT/1.png"],
    "noisy and clean": ["noisy/1.png", "clean/1.png"],
    "words that are not known": ["soft/1.png", "soft/2.png", "crisp/1.png", "crisp/2.png"],
    "before and after": ["x/before/1.png", "x/after/1.png", "y/before/1.png", "y/after/1.png"],
    "source and destination": ["src/s/1.png", "src/s/2.png", "dst/s/1.png", "dst/s/2.png"],
    "images and labels": ["images/1.jpg", "labels/1.png", "images/2.jpg", "labels/2.png"],
    "images A and B": ["images_A/1.png", "images_B/1.png"],
    "BasicSR's crops": ["LRbicx4/1.png", "GTmod12/1.png"],
    "no capitals between": ["BLURimages/1.png", "GTimages/1.png"],
    "one word": ["source/1.png", "groundtruth/2.png"],
    "ends in and out": ["1_in.png", "1_out.png", "2_in.png", "2_out.png"],
    "ends before and after": ["1-before.png", "1-after.png"],
    "ends without a mark": ["1A.png", "1B.png", "2A.png", "2B.png"],
    "begins": ["in1.png", "out1.png", "in2.png", "out2.png"],
    "training and testing": [
        "training/blur/1.png",
        "training/sharp/1.png",
        "testing/blur/2.png",
        "testing/sharp/2.png",
    ],
    "train set and test set": [
        "trainset/input/1.png",
        "trainset/target/1.png",
        "testset/input/2.png",
        "testset/target/2.png",
    ],
    "splits in names of files": ["blur/train_1.png", "sharp/train_1.png", "blur/test_1.png", "sharp/test_1.png"],
    "degraded": ["degraded/1.png", "other/1.png"],
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_a_layout_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    root = make(tmp_path / "data", *NEARLY[name])
    with pytest.raises(InputError, match=r"--pairs|--layout|remove"):
        find(str(root))


@pytest.mark.parametrize("name", ["blur", "Blurred", "input", "blur_gamma", "A", "lq", "test", "blurry-photos"])
def test_a_folder_of_one_side_is_not_taken_for_photographs(name: str, tmp_path: Path) -> None:
    root = make(tmp_path / "S1" / name, "1.png", "2.png")
    with pytest.raises(InputError, match=f"{name}.*--layout photographs"):
        find(str(root))
    assert [photograph.key for photograph in find(str(root), "photographs").photographs] == ["1", "2"]


def test_a_scene_below_a_folder_of_blurred_pictures_is_not_taken_for_photographs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--layout photographs"):
        find(str(make(tmp_path / "train_blur" / "000", "1.png")))


@pytest.mark.parametrize(
    "folder", ["HIDE/test/test-close-ups", "train/GoPro/input/scene01", "lq/s1", "A/s1", "blur/s/t"]
)
def test_a_folder_inside_one_side_or_a_test_split_is_not_taken_for_photographs(folder: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--layout photographs"):
        find(str(make(tmp_path / folder, "1.png")))


def test_one_side_may_be_outside_the_split_that_the_other_is_in(tmp_path: Path) -> None:
    make(tmp_path, "d/test/restored/1.png", "originals/1.png", "d/train/x/1.png")
    found = match_folders(str(tmp_path / "d" / "test" / "restored"), str(tmp_path / "originals"))
    assert pairs_of(found, tmp_path) == {("test", "d/test/restored/1.png", "originals/1.png")}
    with pytest.raises(InputError, match="different splits"):
        match_folders(str(tmp_path / "d" / "test" / "restored"), str(tmp_path / "d" / "train" / "x"))


@pytest.mark.parametrize("name", ["GOPRO_Large/test/S1", "Datasets/test/GoPro", "GOPRO_test"])
def test_a_folder_inside_a_split_is_of_that_split(name: str, tmp_path: Path) -> None:
    root = make(tmp_path / name, "blur/1.png", "sharp/1.png")
    assert list(find(str(root)).splits) == ["test"]
    if "/" in name:  # the name of a folder above may be chance, unless it is nothing else
        assert list(match_folders(str(root / "blur"), str(root / "sharp")).splits) == ["test"]


def test_named_folders_that_are_swapped_or_the_same_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "x", "blur/1.png", "sharp/1.png", "soft/1.png")
    with pytest.raises(InputError, match="they are swapped"):
        match_folders(str(root / "sharp"), str(root / "blur"))
    with pytest.raises(InputError, match="they are swapped"):
        match_folders(str(root / "sharp"), str(root / "soft"))
    with pytest.raises(InputError, match="are both"):
        match_folders(str(root / "soft"), f"{root}/x/../soft")


def test_several_blurred_pictures_may_have_one_sharp_counterpart(tmp_path: Path) -> None:
    make(tmp_path, "x/1.png", "x/2.png", "y/1.png")
    (tmp_path / "pairs.csv").write_text("blurred; sharp\nx/1.png; y/1.png\nx/2.png; y/1.png\n")
    assert {pair.key for pair in read_table(tmp_path / "pairs.csv").splits["train"]} == {"x-1", "x-2"}


def test_pictures_in_no_list_are_counted(tmp_path: Path) -> None:
    root = make(tmp_path / "RealBlur", "s1/gt/gt_1.png", "s1/blur/blur_1.png", "s1/blur/blur_2.png", "s2/gt/gt_1.png")
    lines = [f"s1/gt/gt_1.png s1/blur/blur_{n}.png" for n in (1, 2)]
    (root / "RealBlur_J_train_list.txt").write_text("\n".join(lines))
    assert describe(find(str(root))).splitlines()[1] == "not taken: 1 pictures that are in no list"


def test_reds_as_its_zips_unpack_into_folders_of_their_names(tmp_path: Path) -> None:
    names = ("train_blur/train/train_blur/000/0.png", "train_sharp/train/train_sharp/000/0.png")
    assert pairs_of(find(str(make(tmp_path / "REDS", *names))), tmp_path / "REDS") == {("train", *names)}


def test_photographs_in_folders_of_any_depth(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "a.jpg", "2024/summer/b.JPG", "2024/album-two/c.png", "Bruges (2).png")
    assert [x.key for x in find(str(root)).photographs] == ["2024-album-two-c", "2024-summer-b", "Bruges-(2)", "a"]


def test_an_archive_is_read_without_unpacking(tmp_path: Path) -> None:
    wanted = PUBLISHED["GOPRO_Large as unpacked into a folder"][1]
    root = make(tmp_path / "unpacked", *(path for _, *both in wanted for path in both), "__MACOSX/._x.png")
    for name in {path for _, *both in wanted for path in both}:
        (root / name).write_text(name)
    for kind in ("zip", "tar"):
        archive = shutil.make_archive(str(tmp_path / "GOPRO_Large"), kind, root)
        found = find(archive)
        assert found.layout == "gopro"
        assert {(s, p.blurred.key, p.sharp.key) for s, pairs in found.splits.items() for p in pairs} == wanted
        assert all(p.sharp.read().decode() == p.sharp.key for pairs in found.splits.values() for p in pairs)
        assert found.ignored == 1
    compressed = shutil.make_archive(str(tmp_path / "compressed"), "gztar", root)
    Path(compressed).rename(tmp_path / "compressed.tar")
    with pytest.raises(InputError, match=r"compressed\.tar: not a readable zip or uncompressed tar"):
        find(str(tmp_path / "compressed.tar"))
    with pytest.raises(InputError, match=r"blur_gamma\.zip.*--layout photographs"):
        find(shutil.make_archive(str(tmp_path / "blur_gamma"), "zip", make(tmp_path / "one", "1.png")))


def test_damaged_members_and_broken_links_are_errors_with_their_names(tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("1.png", b"x" * 1000)
    archive.write_bytes(archive.read_bytes().replace(b"x" * 1000, b"y" * 1000))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "2.png").symlink_to(tmp_path / "nowhere.png")
    for root in (archive, tmp_path / "links"):
        (photograph,) = find(str(root)).photographs
        for read in (photograph.file.read, photograph.file.open):
            with pytest.raises(InputError, match=rf"{photograph.file.key}: cannot be read"):
                read()


def test_a_tars_links_are_followed(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "1.png")
    (root / "1.png").write_text("content")
    (root / "2.png").hardlink_to(root / "1.png")
    found = find(shutil.make_archive(str(tmp_path / "photos"), "tar", root))
    assert [photograph.file.read() for photograph in found.photographs] == [b"content"] * 2


@pytest.mark.parametrize("name", ["x.tar.gz", "x.7z"])
def test_other_archives_are_refused_with_what_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: is a file; expected a folder, a zip, or a tar"):
        find(str(make(tmp_path, name) / name))


def test_a_bucket_is_read_like_a_folder(tmp_path: Path, bucket: str) -> None:
    wanted = PUBLISHED["REDS"][1]
    store = open_store(join(bucket, "REDS"))
    for path in {path for _, *both in wanted for path in both}:
        store.put(path, path.encode())
    found = find(join(bucket, "REDS"))
    assert {(s, p.blurred.key, p.sharp.key) for s, pairs in found.splits.items() for p in pairs} == wanted
    assert all(p.sharp.read().decode() == p.sharp.key for pairs in found.splits.values() for p in pairs)


# ---- files


def test_files_of_operating_systems_are_ignored_and_others_counted(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", "a.jpg", "a.xmp", "b.gif", "c.GIF", "README", "._a.jpg", ".DS_Store", "Thumbs.db")
    make(root, "@eaDir/a.jpg", ".ipynb_checkpoints/a.png", "__MACOSX/a.jpg", "sub/desktop.ini")
    found = find(str(root))
    assert [photograph.key for photograph in found.photographs] == ["a"]
    assert describe(found).splitlines()[1] == (
        "not taken: 2 .gif (--first-frame takes the first frame), 1 .xmp, 1 README, 7 hidden or of the operating system"
    )


def test_linked_files_and_folders_are_followed_and_loops_refused(tmp_path: Path) -> None:
    outside = make(tmp_path / "outside", "1.png", "album/2.png")
    root = make(tmp_path / "photos", "0.png")
    (root / "1.png").symlink_to(outside / "1.png")
    (root / "album").symlink_to(outside / "album")
    assert walk(str(root)).pictures == ["0.png", "1.png", "album/2.png"]
    (outside / "album" / "back").symlink_to(root)
    with pytest.raises(InputError, match="back: links to a folder that it is in"):
        walk(str(root))


# ---- no blurred picture is ever taken for a sharp one

BLURRED = ["blur", "blur_gamma", "Blurred", "blurry", "input", "LQ", "lq", "A", "blur_crops", "motionblur", "degraded"]
SHARP = ["sharp", "Sharp", "target", "GT", "gt", "HQ", "B", "sharp_crops", "clean", "HR", "photos", ""]
SPLITS = ["", "train", "test", "val", "Train"]


@st.composite
def trees(draw: st.DrawFn) -> dict[str, tuple[bool, str]]:
    """Path -> (whether it is blurred, what it shows): a tree of one arrangement, with mistakes."""
    words = draw(st.sampled_from(BLURRED)), draw(st.sampled_from(SHARP))
    splits = draw(st.lists(st.sampled_from(SPLITS), min_size=1, max_size=2, unique=True))
    scenes = draw(st.sampled_from([("",), ("S1",), ("S1", "S2"), ("", "S1")]))
    place = draw(st.sampled_from(["above", "between", "below", "end", "begin", "split_word"]))
    found = {}
    for split in splits:
        for scene in scenes:
            for name in ("0001", "0002"):
                for word, blurred in zip(words, (True, False), strict=True):
                    path = _path(place, word, split, scene, name)
                    path += draw(st.sampled_from([".png", ".png", ".png", ".jpg"]))
                    if draw(st.integers(0, 19)):  # sometimes one is missing
                        found.setdefault(path, (blurred, f"{split.lower()}/{scene}/{name}"))
    return found


def _path(place: str, word: str, split: str, scene: str, name: str) -> str:
    parts = {
        "above": [word, split, scene, name],
        "between": [split, word, scene, name],
        "below": [split, scene, word, name],
        "end": [split, scene, f"{name}_{word}" if word else name],
        "begin": [split, scene, f"{word}_{name}" if word else name],
        "split_word": [split, f"{split}_{word}" if split and word else word, scene, name],
    }
    return "/".join(part for part in parts[place] if part)


@settings(max_examples=400, deadline=None)
@given(tree=trees(), blur=st.sampled_from([None, "blur", "blur_gamma"]))
def test_no_blurred_picture_is_ever_taken_for_a_sharp_one(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, tuple[bool, str]], blur: str | None
) -> None:
    root = make(tmp_path_factory.mktemp("tree") / "data", *tree)
    try:
        found = find(str(root), blur=blur)
    except InputError:
        return
    truth = {File(str(root), path): value for path, value in tree.items()}
    assert not any(truth[photograph.file][0] for photograph in found.photographs)
    for split, pairs in found.splits.items():
        for pair in pairs:
            (first, shown), (second, also_shown) = truth[pair.blurred], truth[pair.sharp]
            assert (first, second, shown) == (True, False, also_shown)
            said = shown.split("/")[0]
            assert split == {"": "train", "val": "validation"}.get(said, said)
