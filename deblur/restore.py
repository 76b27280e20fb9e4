"""Restores photographs: python -m deblur.restore IN... --out DIR --model runs/RUN

Files and folders of any size; sub-folders and names are kept. The output is upright (EXIF orientation applied), grey
where the input is grey, and keeps alpha and colour profile; other metadata is left out. Pictures of 16 bits become 8,
CMYK and palettes become RGB.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import InputError, one_line_errors
from cluster.storage import open_store
from deblur.data.pictures import SUFFIXES
from deblur.photograph import read_photograph, write_photograph
from deblur.tiles import FACTOR, MARGIN, MAX_PIXELS, RAMP, TILE, restore_picture
from deblur.trained import load_model, pick_device

_SMALLEST_TILE = 2 * MARGIN + RAMP + FACTOR


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
