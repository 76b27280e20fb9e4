"""Restores photographs: python -m deblur.restore IN... --out DIR --model runs/RUN

Files and folders of any size; sub-folders and names are kept. The output is upright (EXIF orientation applied), grey
where the input is grey, and keeps alpha and colour profile; other metadata is left out. Pictures of 16 bits become 8,
CMYK and palettes become RGB.
"""

import io
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL.Image
import PIL.ImageOps
import safetensors
import safetensors.torch
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.checkpoints import Checkpoints
from cluster.errors import InputError, one_line_errors
from cluster.storage import open_store, read_url
from deblur import recipe as recipes
from deblur.data.pictures import SUFFIXES, open_picture
from deblur.recipe import build_generator
from deblur.tiles import FACTOR, MARGIN, MAX_PIXELS, RAMP, TILE, restore_picture

_SMALLEST_TILE = 2 * MARGIN + RAMP + FACTOR
_FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}  # else JPEG
_WITHOUT_ALPHA = ("JPEG", "BMP")


@dataclass(frozen=True, kw_only=True)
class Settings:
    inputs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="IN...")]]
    """Photographs, and folders of them."""
    out: Path
    """Folder for the restored ones; created where it is missing."""
    model: str
    """A run (folder or s3:// URL), or a generator.safetensors."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto is a GPU where there is one."""
    tile: int = 0
    """Work in tiles of so many pixels a side; 0 does where a photograph is large or memory short."""

    def __post_init__(self) -> None:
        if self.tile and self.tile < _SMALLEST_TILE:
            raise InputError(f"--tile is {self.tile}; it must be at least {_SMALLEST_TILE}, or 0 for automatic")


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """What a file holds, upright."""

    pixels: np.ndarray
    """[H, W, 3] uint8 RGB; three equal channels where grey."""
    alpha: np.ndarray | None
    """[H, W] uint8."""
    grey: bool
    profile: bytes | None
    """ICC profile of the pixels."""


def restore_files(
    generator: nn.Module, files: Sequence[tuple[Path, Path]], device: torch.device, tile: int
) -> list[str]:
    """Restores each (input, output) of `plan`; returns one line for each that failed."""
    failures = []
    for source, target in tqdm(files, unit="photo", disable=None):
        try:
            data = restore_file(generator, _read(source), str(source), target.suffix, device, tile)
            open_store(target.parent).put(target.name, data)
        except InputError as error:
            failures.append(str(error))
        except torch.OutOfMemoryError:
            failures.append(f"{source}: no GPU memory for one tile; choose a smaller --tile, or --device cpu")
    return failures


def restore_file(
    generator: nn.Module, data: bytes, name: str, suffix: str, device: torch.device, tile: int = 0
) -> bytes:
    """The restored photograph as a file of the format that the suffix means. Raises InputError with its name."""
    photograph = read_photograph(data, name)
    limit = {"max_pixels": 0, "tile": tile} if tile else {"max_pixels": MAX_PIXELS, "tile": TILE}
    restored = restore_picture(generator, photograph.pixels, device=device, **limit)
    return write_photograph(photograph, restored, name, suffix)


def read_photograph(data: bytes, name: str) -> Photograph:
    """Decodes a file. Raises InputError with its name where that cannot be done without loss of meaning."""
    picture = open_picture(data, name)
    # A phone's MPO is one photograph; what follows in it are depth and brightness maps.
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        raise InputError(f"{name}: holds {picture.n_frames} pictures; split it into files of one")
    if picture.mode in ("I", "F"):
        raise InputError(f"{name}: holds {picture.mode} values of 32 bits, no photograph; convert it to 8 or 16 bits")
    try:
        return _photograph(PIL.ImageOps.exif_transpose(picture))
    except Exception as error:
        raise InputError(f"{name}: does not decode ({error}); replace or remove it") from error


def _photograph(picture: PIL.Image.Image) -> Photograph:
    grey = picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16")
    profile = None if picture.mode in ("CMYK", "LAB") else picture.info.get("icc_profile")
    if picture.mode.startswith("I;16"):
        # By hand: Pillow clips at 255 in some versions and takes the high byte in others.
        values = np.asarray(picture).astype(np.float32) / 257
        picture = PIL.Image.fromarray(values.round().astype(np.uint8))
    alpha = np.array(picture.convert("RGBA").getchannel("A")) if picture.has_transparency_data else None
    pixels = np.array(picture.convert("RGBA" if alpha is not None else "RGB"))[..., :3]
    return Photograph(pixels=pixels, alpha=alpha, grey=grey, profile=profile)


def write_photograph(photograph: Photograph, pixels: np.ndarray, name: str, suffix: str) -> bytes:
    """Other pixels, [H, W, 3] uint8 RGB, with all else that the photograph had, as the bytes of a file."""
    kind = _FORMATS.get(suffix.lower(), "JPEG")
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    if photograph.grey:
        picture = picture.convert("L")
    if photograph.alpha is not None:
        if kind in _WITHOUT_ALPHA:
            raise InputError(f"{name}: has an alpha channel, which a {kind} cannot hold; rename it to .png")
        picture.putalpha(PIL.Image.fromarray(photograph.alpha))
    out = io.BytesIO()
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    picture.save(out, kind, icc_profile=photograph.profile, **options)
    return out.getvalue()


def plan(inputs: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each photograph with the file it becomes. Raises InputError before any work where one would be overwritten."""
    if not inputs:
        raise InputError("nothing to restore: name photographs, or folders of them")
    targets: dict[Path, Path] = {}
    for source, relative in _found(inputs):
        other = targets.setdefault(out / relative, source)
        if other.resolve() != source.resolve():
            raise InputError(f"{other} and {source} would both become {out / relative}; restore them one at a time")
    sources = {source.resolve() for source in targets.values()}
    for target in targets:
        if target.resolve() in sources:
            raise InputError(f"{target} is an input and would be overwritten; choose an --out away from the inputs")
    return [(source, target) for target, source in targets.items()]


def _found(inputs: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Each photograph and its place below --out."""
    for given in inputs:
        if given.is_dir():
            inside = sorted(path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise InputError(f"{given}: no photograph in this folder; looked for {', '.join(SUFFIXES)}")
            yield from ((path, path.relative_to(given)) for path in inside)
        elif not given.is_file():
            raise InputError(f"{given}: no such file or folder")
        elif given.suffix.lower() not in SUFFIXES:
            raise InputError(f"{given}: not one of {', '.join(SUFFIXES)}; convert it")
        else:
            yield given, Path(given.name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one. Raises InputError where there is none of that name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: cannot be used here ({reason}); choose auto, cpu or cuda") from error


def load_model(url: str, device: torch.device) -> nn.Module:
    """The generator of a run's newest checkpoint that is whole, or of one generator.safetensors, in eval mode.

    The file says itself which recipe it is of. Nothing in it is executed. Raises InputError naming the place, and the
    first tensor that is not what the recipe makes.
    """
    data = read_url(url) if url.endswith(".safetensors") else _newest_generator(url)
    generator = build_generator(recipes.from_json(_recipe_text(data, url), url))
    try:
        weights = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"{url}: not a whole safetensors file ({error}); copy it again") from error
    _check_tensors(generator.state_dict(), weights, url)
    generator.load_state_dict(weights)
    return generator.to(device).eval()


def _newest_generator(url: str) -> bytes:
    found = Checkpoints(open_store(url)).newest_part("generator.safetensors")
    if found is None:
        raise InputError(
            f"{url}: holds no checkpoint that is whole; --model takes a run that has one, or a generator.safetensors"
        )
    return found


def _recipe_text(data: bytes, place: str) -> str:
    """The recipe among a safetensors file's metadata: a length in 8 bytes, a JSON header, the tensors."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return header["__metadata__"]["recipe"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{place}: no generator with its recipe; take a generator.safetensors of a run") from error


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], place: str) -> None:
    for name in [*expected, *sorted(found)]:
        wanted, came = (str(list(side[name].shape)) if name in side else "absent" for side in (expected, found))
        if wanted != came:
            raise InputError(f"{place}: another network than its recipe's: tensor {name} is {came}, expected {wanted}")


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.restore")
        files = plan(settings.inputs, settings.out)
        device = pick_device(settings.device)
        generator = load_model(settings.model, device)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        with logging_redirect_tqdm():
            failures = restore_files(generator, files, device, settings.tile)
    print(f"{len(files) - len(failures)} of {len(files)} photographs restored into {settings.out}")
    if failures:
        print("\n".join(["not restored:", *failures]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
