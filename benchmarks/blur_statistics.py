"""Synthetic blur of photographs next to GOPRO's: how blurred each is.

python -m benchmarks.blur_statistics --photos FOLDER --gopro GOPRO_Large
python -m benchmarks.blur_statistics --photos FOLDER --gopro GOPRO_Large --sheet docs/blur.jpg

For each source, percentiles over pictures of PSNR (blurred against sharp) and of the sum of gradient magnitudes,
blurred over sharp. --sheet draws crops: GOPRO above, below it one kind of synthetic blur per row.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from benchmarks.command import option, run
from cluster.errors import InputError
from deblur.data import layouts, pictures
from deblur.data.blur import blurred as paper_blurred
from deblur.data.camera_blur import CameraBlurSettings, camera_blurred
from deblur.data.files import File
from deblur.data.pairs import SharpPicture

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
CAMERA = CameraBlurSettings()
KINDS = {
    "camera": CAMERA,
    "shake": replace(CAMERA, unblurred_share=0, shake_share=1),
    "frames": replace(CAMERA, unblurred_share=0, shake_share=0),
}
CROP, COLUMNS, CAPTION = 190, 5, 18  # pixels, crops per row, pixels
SHEET_BYTES = 200_000

Blurry = tuple[np.ndarray, np.ndarray]  # (blurred, sharp), uint8 [H, W, 3]


@dataclass(frozen=True, kw_only=True)
class Settings:
    photos: str = option(".", "A folder of sharp photographs.")
    gopro: str | None = option(None, "A tree of GOPRO_Large's layout to compare with.")
    variants: int = option(2, "Blurs per photograph.")
    sheet: str | None = option(None, "A JPEG file to draw crops into.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """Percentiles of each source. Raises InputError if a folder has no pictures."""
    photos = layouts.find(settings.photos, "photographs").photographs
    sources: dict[str, Iterable[Blurry]] = {"paper": _paper(photos, settings.variants)}
    sources |= {name: _camera(photos, kind, settings.variants) for name, kind in KINDS.items()}
    if settings.gopro:
        sources = {blur: gopro_pairs(settings.gopro, blur) for blur in ("blur", "blur_gamma")} | sources
    if settings.sheet:
        Path(settings.sheet).write_bytes(sheet(photos, settings.gopro))
    figures: dict[str, Any] = {"percentiles": PERCENTILES}
    for name, found in sources.items():
        measured = np.array([(psnr(*pair), gradient_ratio(*pair)) for pair in found])
        figures[f"{name} pairs"] = len(measured)
        for column, (measure_name, digits) in enumerate((("PSNR dB", 1), ("gradients", 2))):
            values = np.percentile(measured[:, column], PERCENTILES)
            figures[f"{name} {measure_name}"] = [round(float(value), digits) for value in values]
    return figures


def psnr(blurred: np.ndarray, sharp: np.ndarray) -> float:
    """dB, at most 99: an unblurred pair may be equal."""
    error = np.square(blurred.astype(np.float32) - sharp).mean()
    return min(99.0, float(10 * np.log10(255**2 / max(error, 1e-9))))


def gradient_ratio(blurred: np.ndarray, sharp: np.ndarray) -> float:
    """The sum of gradient magnitudes of the grey picture, blurred over sharp."""
    sums = [np.hypot(*np.gradient(side.mean(axis=2, dtype=np.float32))).sum() for side in (blurred, sharp)]
    return float(sums[0] / max(sums[1], 1e-9))


def gopro_pairs(root: str, blur: layouts.GoproBlur) -> Iterator[Blurry]:
    """All pairs of a GOPRO tree."""
    found = [pair for pairs in layouts.find(root, blur=blur).splits.values() for pair in pairs]
    if not found:
        raise InputError(f"--gopro {root}: has no pairs of GOPRO_Large's layout; expected train/SCENE/{blur}/*.png")
    return ((read(pair.blurred), read(pair.sharp)) for pair in found)


def read(file: File) -> np.ndarray:
    return pictures.decode(file.read(), str(file))


def _paper(photos: list[SharpPicture], variants: int) -> Iterator[Blurry]:
    for nth, photo in enumerate(photos):
        sharp = read(photo.file)
        for variant in range(variants):
            yield paper_blurred(sharp, (nth, variant)), sharp


def _camera(photos: list[SharpPicture], kind: CameraBlurSettings, variants: int) -> Iterator[Blurry]:
    for nth, photo in enumerate(photos):
        sharp = read(photo.file)
        for variant in range(variants):
            yield camera_blurred(sharp, (nth, variant), kind), sharp


def sheet(photos: list[SharpPicture], gopro: str | None) -> bytes:
    """A JPEG of crops, a row per kind, of at most SHEET_BYTES."""
    rows: list[tuple[str, list[np.ndarray]]] = []
    if gopro:
        found = list(gopro_pairs(gopro, "blur_gamma"))
        chosen = [found[nth * (len(found) - 1) // (COLUMNS - 1)][0] for nth in range(COLUMNS)]
        rows.append(("GOPRO, real frames averaged (Nah et al. 2017, CC BY 4.0)", chosen))
    sharp = [read(photo.file) for photo in (photos * COLUMNS)[:COLUMNS]]
    rows.append(("photographs, sharp", sharp))
    frames = replace(KINDS["frames"], depth_share=0, object_share=0)
    captioned = {
        "paper": None,
        "camera: shake": KINDS["shake"],
        "camera: frames": frames,
        "camera: frames with a near layer and objects": replace(frames, depth_share=1, object_share=1),
    }
    for caption, kind in captioned.items():
        crops = [
            camera_blurred(picture, (nth, 1), kind) if kind else paper_blurred(picture, (nth, 1))
            for nth, picture in enumerate(sharp)
        ]
        rows.append((caption, crops))
    return _jpeg(_drawn(rows))


def _drawn(rows: list[tuple[str, list[np.ndarray]]]) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (COLUMNS * CROP, len(rows) * (CROP + CAPTION)), "white")
    draw, font = PIL.ImageDraw.Draw(image), PIL.ImageFont.load_default(13)
    for nth, (caption, row) in enumerate(rows):
        top = nth * (CROP + CAPTION)
        draw.text((4, top + 1), caption, fill="black", font=font)
        for column, picture in enumerate(row):
            image.paste(PIL.Image.fromarray(_middle(picture)), (column * CROP, top + CAPTION))
    return image


def _middle(picture: np.ndarray) -> np.ndarray:
    """A square of CROP pixels from the middle, at full size: scaled down, blur would look smaller."""
    top, left = ((side - CROP) // 2 for side in picture.shape[:2])
    return picture[max(0, top) :, max(0, left) :][:CROP, :CROP]


def _jpeg(image: PIL.Image.Image) -> bytes:
    """The best quality that keeps the size."""
    for quality in range(90, 20, -5):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= SHEET_BYTES:
            break
    return file.getvalue()


if __name__ == "__main__":
    run("blur_statistics", __doc__, Settings, measure)
