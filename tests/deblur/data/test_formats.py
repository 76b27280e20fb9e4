"""Formats: the same picture in each comes out the same in packing, restoring and the service."""

import contextlib
import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import skimage.data
import torch
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.app.media import ACCEPTED, TYPES
from deblur.data.dataset import Dataset
from deblur.data.formats import FORMATS, SUFFIXES, is_picture, restored_name
from deblur.data.loader import pairs_of
from deblur.data.pack_settings import PackSettings
from deblur.data.packing import pack
from deblur.data.photographs import Animated, read_photograph
from deblur.data.pictures import TooLarge, open_picture, upright_size
from deblur.inference.bulk import plan, restore_file, restore_photographs
from deblur.inference.settings import RestoreSettings

UPRIGHT = np.ascontiguousarray(skimage.data.astronaut()[:160, 100:340])


@cache
def display_p3() -> bytes:
    """Not a copy of Apple's: sRGB's profile with the red colorant of Display P3, which is what a decoder must keep."""
    data = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for nth in range(count):
        tag = 132 + 12 * nth
        if data[tag : tag + 4] == b"rXYZ":
            start = int.from_bytes(data[tag + 4 : tag + 8], "big") + 8
            data[start : start + 12] = b"".join(
                round(65536 * value).to_bytes(4, "big", signed=True) for value in (0.5151, 0.2412, -0.0011)
            )
    return bytes(data)


def iphone_heic() -> bytes:
    """A HEIC with EXIF orientation 6 and a wide gamut, as phones write it: stored turned, shown upright."""
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    exif[0x110] = "a phone"
    out = io.BytesIO()
    stored = PIL.Image.fromarray(np.ascontiguousarray(np.rot90(UPRIGHT)))
    stored.save(out, "HEIF", quality=95, exif=exif.tobytes(), icc_profile=display_p3())
    return out.getvalue()


def distance(pixels: np.ndarray) -> float:
    assert pixels.shape == UPRIGHT.shape
    return float(np.abs(pixels.astype(int) - UPRIGHT).mean())


class Same(nn.Module):
    def forward(self, blurred: Tensor) -> Tensor:
        return blurred


def test_a_phones_heic_is_upright_and_keeps_its_colours_in_packing_and_restoring(tmp_path: Path) -> None:
    data = iphone_heic()
    assert PIL.Image.open(io.BytesIO(data)).format == "HEIF"
    found = read_photograph(data, "IMG_0001.HEIC")
    assert distance(found.pixels) < 4
    assert found.profile == display_p3()

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_0001.HEIC").write_bytes(data)
    index = pack(PackSettings(source=str(tmp_path / "photos"), out=str(tmp_path / "out"), validation_scenes=0))
    dataset = Dataset(open_store(tmp_path / "out"), index)
    ((_, sharp),) = pairs_of(dataset, index.splits["train"], range(1), 1)
    assert np.array_equal(sharp, found.pixels)

    (photo,) = plan([str(tmp_path / "photos")], str(tmp_path / "restored"))
    assert photo.target == "IMG_0001.jpg"
    restored = PIL.Image.open(io.BytesIO(restore_file(Same().eval(), data, photo.name, ".jpg", torch.device("cpu"))))
    assert (restored.format, restored.info["icc_profile"]) == ("JPEG", display_p3())
    assert 0x112 not in restored.getexif()
    assert distance(np.array(restored)) < 5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_ending_is_read_and_restored_in_a_format_of_its_name(suffix: str) -> None:
    kind = next(one.name for one in FORMATS if suffix in one.endings)
    data = io.BytesIO()
    PIL.Image.fromarray(UPRIGHT).save(data, kind, **({"quality": 95} if kind not in ("PNG", "BMP", "TIFF") else {}))
    assert is_picture(f"x{suffix.upper()}")
    assert distance(read_photograph(data.getvalue(), f"x{suffix}").pixels) < 5
    target = Path(restored_name(f"folder/x{suffix}"))
    restored = restore_file(Same().eval(), data.getvalue(), "x", target.suffix, torch.device("cpu"))
    written = PIL.Image.open(io.BytesIO(restored))
    assert target.suffix in next(one.endings for one in FORMATS if one.name == written.format)
    assert distance(np.array(written)) < 6


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "HEIF"])
def test_of_several_pictures_the_first_is_read_when_asked_whatever_the_format(kind: str) -> None:
    frames = [PIL.Image.fromarray(np.roll(UPRIGHT, shift, 0)) for shift in (0, 40, 80)]
    data = io.BytesIO()
    frames[0].save(data, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(Animated, match="x: holds 3 pictures"):
        read_photograph(data.getvalue(), "x")
    found = read_photograph(data.getvalue(), "x", first_frame=True).pixels
    assert distance(found) < (12 if kind == "GIF" else 5) < distance(np.array(frames[1]))


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused_without_memory() -> None:
    screen = b"GIF89a" + bytes([1, 0, 1, 0, 0, 0, 0])
    frame = bytes.fromhex("21F90408000000002C00000000FFFFFFFF000800 3B".replace(" ", ""))
    with pytest.raises(TooLarge, match="over the limit of 1000000 pixels"):
        open_picture(screen + frame, "x", 1_000_000)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_cut_gif_is_refused_or_read(cut: int) -> None:
    frames = [PIL.Image.fromarray(np.roll(UPRIGHT[:9, :9], shift, 0)) for shift in (0, 4)]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    with contextlib.suppress(InputError):
        read_photograph(data.getvalue()[:-cut], "x")


def test_commands_take_gifs_and_first_frames_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    frames = [PIL.Image.fromarray(np.roll(UPRIGHT, shift, 0)) for shift in (0, 40)]
    for name in ("a.gif", "b.png"):
        frames[0].save(tmp_path / "in" / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "in" / "c.png")

    def restored(**asked: bool) -> list[str]:
        out = tmp_path / f"restored{asked}"
        lines = restore_photographs(RestoreSettings(inputs=(str(tmp_path / "in"),), out=str(out), **asked))
        return [*sorted(path.name for path in out.glob("*.png")), *lines]

    *names, failure = restored()
    assert names == ["c.png"]
    assert failure.endswith("b.png: holds 2 pictures; split it into one file each, or add --first-frame")
    assert "not taken: 1 .gif (--first-frame takes the first frame)" in capsys.readouterr().out
    assert restored(first_frame=True) == ["a.png", "b.png", "c.png"]

    packing = PackSettings(source=str(tmp_path / "in"), out=str(tmp_path / "out"), validation_scenes=0)
    with pytest.raises(InputError, match=r"b\.png.* holds 2 pictures.* add --first-frame"):
        pack(packing)
    index = pack(replace(packing, first_frame=True))
    dataset = Dataset(open_store(tmp_path / "out"), index)
    sharps = [sharp for _, sharp in pairs_of(dataset, index.splits["train"], range(3), 1)]
    assert sorted(map(distance, sharps))[:2] == [0, 0]
    assert max(map(distance, sharps)) < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_in_the_header_is_that_of_the_upright_picture(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    data = io.BytesIO()
    PIL.Image.fromarray(UPRIGHT).save(data, kind, exif=exif.tobytes())
    height, width, _ = read_photograph(data.getvalue(), "x").pixels.shape
    assert upright_size(open_picture(data.getvalue(), "x")) == (width, height)
    assert (height, width) == (UPRIGHT.shape[:2] if orientation in (1, 3) else UPRIGHT.shape[1::-1])


def test_the_service_accepts_what_phones_and_browsers_make() -> None:
    phones = {"image/jpeg", "image/heic", "image/heif"}
    assert set(ACCEPTED) == phones | {"image/png", "image/webp", "image/avif", "image/gif"}
    assert TYPES["HEIF"] == "image/heic"


def test_what_is_left_out_of_a_folder_is_counted_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "b.JPE", "c.jfif", "d.CR2", "e.gif", "f.gif", "._a.jpg", ".DS_Store", "sub/@eaDir/a.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    photos = plan([str(tmp_path / "in")], str(tmp_path / "out"))
    assert [photo.name for photo in photos] == ["a.jpg", "b.JPE", "c.jfif"]
    assert "not taken: 1 .cr2, 2 .gif (--first-frame takes the first frame), 3 hidden" in capsys.readouterr().out
