"""Bulk restoration of photographs in folders and buckets, in this process or on a Ray cluster, each once."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import FINAL, InputError, NotFound
from cluster.on_ray.placement import Placement
from cluster.storage import Store, absolute, join, open_store
from deblur.data.files import not_taken, sort_files
from deblur.data.formats import SUFFIXES, how_to_read, is_picture, restored_name
from deblur.data.photographs import Animated, read_photograph
from deblur.data.pictures import TooLarge
from deblur.inference.photograph import write_photograph
from deblur.inference.settings import RestoreSettings
from deblur.inference.tiles import FACTOR, MARGIN, RAMP, TILE, restore_picture
from deblur.models.names import EMBEDDED
from deblur.models.trained import build_model, pick_device, read_model

MADE_BY = "restored-by.json"
_SMALLEST_TILE = 2 * MARGIN + RAMP + FACTOR


@dataclass(frozen=True)
class Photo:
    """An input, and its name below --out."""

    folder: str
    """Folder or URL."""
    name: str
    target: str

    @property
    def place(self) -> str:
        """A unique name of the file or object."""
        return _place(self.folder, self.name)


Work = Callable[[Photo], str]
"""Restores one photograph; returns the error, or an empty string."""


def restore_photographs(settings: RestoreSettings) -> list[str]:
    """Restores the photographs of the settings, prints a summary, and returns one line for each that failed.

    Raises InputError for what is wrong with the inputs, the outputs or the model, before any work.
    """
    if settings.tile and settings.tile < _SMALLEST_TILE:
        raise InputError(f"--tile is {settings.tile}; it must be at least {_SMALLEST_TILE}, or 0 for automatic")
    folder, name = _folder_and_name(settings)
    settings = replace(settings, out=folder)
    photos = plan(settings.inputs, folder, settings.first_frame, name)
    model = read_model(settings.model)
    if settings.model == EMBEDDED:
        print("model    the one inside this package (docs/embedded-model.md); --model chooses another", flush=True)
    build_model(model, settings.model, torch.device("cpu"))  # a bad model is refused before any node is requested
    store = open_store(folder)
    if name and not settings.overwrite and _exists(store, name):
        raise InputError(f"--out {join(folder, name)}: exists; choose another name, or add --overwrite")
    left = photos if name else left_to_do(photos, store, model, settings)
    with logging_redirect_tqdm():
        failures = restore(left, model, settings) if left else []
    existing = f", {len(photos) - len(left)} already existed" if len(left) < len(photos) else ""
    print(f"{len(left) - len(failures)} of {len(photos)} photographs restored into {settings.out}{existing}")
    return failures


def work_of(model: bytes, settings: RestoreSettings) -> Work:
    """The work of one process, with its model on its device."""
    device = pick_device(settings.device)
    generator = build_model(model, settings.model, device)
    store = cache(open_store)
    options = FileOptions(
        tile=settings.tile,
        max_pixels=int(settings.max_megapixels * 1e6),
        first_frame=settings.first_frame,
        strip=settings.strip,
    )

    def work(photo: Photo) -> str:
        try:
            data = store(photo.folder).get(photo.name)
            suffix = PurePosixPath(photo.target).suffix
            restored = restore_file(generator, data, photo.place, suffix, device, options)
            store(settings.out).put(photo.target, restored)
        except TooLarge as error:
            return f"{error}, or raise --max-megapixels"
        except Animated as error:
            return f"{error}, or add --first-frame"
        except InputError as error:
            return str(error)
        except torch.OutOfMemoryError:
            return f"{photo.place}: not enough GPU memory for one tile; choose a smaller --tile, or --device cpu"
        except (*FINAL, torch.AcceleratorError):  # would fail for the others, too
            raise
        except Exception as error:  # one odd photograph must not stop millions of others
            return f"{photo.place}: cannot be restored ({type(error).__name__}: {error})"
        return ""

    return work


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a photograph is read, restored and written."""

    tile: int = 0
    """Side of tiles in pixels; 0 for tiles only where they are needed."""
    max_pixels: int | None = None
    """Largest photograph that is decoded; default: pictures.MAX_PIXELS."""
    first_frame: bool = False
    strip: bool = False
    """Leave out EXIF."""


def restore_file(
    generator: nn.Module,
    data: bytes,
    name: str,
    suffix: str,
    device: torch.device,
    options: FileOptions = FileOptions(),  # it is frozen
) -> bytes:
    """The restored photograph as a file in the suffix's format. Raises InputError with its name."""
    photograph = read_photograph(data, name, options.max_pixels, first_frame=options.first_frame)
    max_pixels, side = (0, options.tile) if options.tile else (None, TILE)
    restored = restore_picture(generator, photograph.pixels, device=device, max_pixels=max_pixels, tile=side)
    return write_photograph(photograph, restored, name, suffix, keep_exif=not options.strip)


def plan(inputs: Sequence[str], out: str, first_frame: bool = False, name: str = "") -> list[Photo]:
    """All photographs of the inputs; the only one perhaps with another `name` in `out`.

    Raises InputError if two outputs coincide, an input would be overwritten, or a key cannot be a file's name.
    """
    if not inputs:
        raise InputError("nothing to restore: give photographs, or folders of them")
    targets: dict[str, Photo] = {}
    for found in _found(inputs, out, first_frame):
        photo = replace(found, target=name or _target(found, out))
        other = targets.setdefault(photo.target, photo)
        if other.place != photo.place:
            both = join(out, photo.target)
            raise InputError(f"{other.place} and {photo.place} would both become {both}; restore them one at a time")
    sources = {photo.place for photo in targets.values()}
    for target in targets:
        if _place(out, target) in sources:
            raise InputError(f"{join(out, target)} is an input and would be overwritten; choose another --out")
    return list(targets.values())


def _target(photo: Photo, out: str) -> str:
    """Its name below `out`. In a folder a//b and a/./b are the same file, which they are not in a bucket."""
    if "://" in out:
        return photo.target
    name = PurePosixPath(photo.target)
    if name.is_absolute():
        raise InputError(f"{photo.place}: cannot be a file below {out}; rename the object, or choose an s3:// --out")
    return str(name)


def _exists(store: Store, key: str) -> bool:
    """Not by listing: a folder of files may be large."""
    try:
        store.get(key, 0, 1)
    except NotFound:
        return False
    return True


def _folder_and_name(settings: RestoreSettings) -> tuple[str, str]:
    """The folder of --out, and a file's name in it where --out is one. Raises InputError if it cannot be one."""
    out = settings.out
    suffix = PurePosixPath(out).suffix.lower()
    if not (is_picture(out, first_frame=True) or how_to_read(suffix)) or Path(out).is_dir():
        if Path(out).is_file():
            raise InputError(f"--out {out}: is a file; choose a folder, or the name of a picture")
        return absolute(out), ""
    (given, *more) = settings.inputs or ("",)
    if more or not is_picture(given, settings.first_frame) or Path(given).is_dir():
        raise InputError(f"--out {out}: is one picture, and the inputs may be several; choose a folder")
    folder, _, name = absolute(out).rpartition("/")
    if not is_picture(name, first_frame=True) or restored_name(name) != name:
        raise InputError(f"--out {out}: {suffix} is not written; choose a name that ends in .png or .jpg")
    return folder, name


def _found(inputs: Sequence[str], out: str, first_frame: bool) -> Iterator[Photo]:
    """Each photograph of the inputs, without those in an `out` inside an input folder."""
    for given in inputs:
        is_photo = is_picture(given, first_frame)
        is_url = "://" in given
        if Path(given).is_dir() or (is_url and not is_photo):
            keys = (key for key in open_store(given).list() if not _is_made(given, key, out))
            files = sort_files(keys, first_frame)
            others = not_taken(files.others + Counter(".txt" for _ in files.lists), files.ignored)
            if not files.pictures:
                raise InputError(f"{given}: no photographs in this folder (expected {', '.join(SUFFIXES)}) {others}")
            if others:
                print(f"{given}: {others}", flush=True)
            yield from (Photo(absolute(given), key, restored_name(key)) for key in files.pictures)
        elif not is_url and not Path(given).is_file():
            raise InputError(f"{given}: no such file or folder")
        elif not is_photo:
            hint = how_to_read(PurePosixPath(given).suffix.lower()) or "convert it"
            raise InputError(f"{given}: not a supported format ({', '.join(SUFFIXES)}); {hint}")
        else:
            folder, _, name = absolute(given).rpartition("/")
            yield Photo(folder, name, restored_name(name))


def _is_made(folder: str, name: str, out: str) -> bool:
    """Whether it is an output, in an `out` inside the input folder."""
    inputs, restored = (f"{_place(root, '').rstrip('/')}/" for root in (folder, out))
    return restored != inputs and restored.startswith(inputs) and _place(folder, name).startswith(restored)


def _place(folder: str, name: str) -> str:
    """A unique name of a file or object, with links resolved."""
    return join(folder, name) if "://" in folder else str((Path(folder) / name).resolve())


def left_to_do(photos: Sequence[Photo], out: Store, model: bytes, settings: RestoreSettings) -> list[Photo]:
    """The photographs that are not in `out` yet.

    Raises InputError if `out` has photographs of another model, which would be mixed with this one's.
    """
    wanted = json.dumps({"generator": hashlib.sha256(model).hexdigest(), "tile": settings.tile}).encode()
    there = set(out.list())
    if settings.overwrite:
        out.delete(*(photo.target for photo in photos if photo.target in there))
        out.put(MADE_BY, wanted)
        return list(photos)
    left = [photo for photo in photos if photo.target not in there]
    if len(left) < len(photos) and MADE_BY not in there:
        raise InputError(f"{out.url}: holds other photographs of these names; choose another --out")
    if not out.create(MADE_BY, wanted):
        raise InputError(
            f"{out.url}: holds photographs restored by another model or in other tiles ({MADE_BY}); choose another "
            "--out, or add --overwrite (the model of a run in training changes with each checkpoint: use one of its "
            "generator.safetensors)"
        )
    return left


def restore(photos: Sequence[Photo], model: bytes, settings: RestoreSettings) -> list[str]:
    """Restores photographs in this process or on the cluster; returns one line for each that failed."""
    seconds = 0.1 if sys.stderr.isatty() else 60  # one line per minute in the log of a job
    progress = partial(tqdm, total=len(photos), unit="photo", mininterval=seconds, maxinterval=seconds)
    if settings.nodes is None:
        work = work_of(model, settings)
        outcomes: Iterable[Any] = (work(photo) for photo in photos)
    else:
        outcomes = _outcomes_of_nodes(photos, model, settings, settings.nodes)
    return [line for line in progress(outcomes) if line]


def _outcomes_of_nodes(photos: Sequence[Photo], model: bytes, settings: RestoreSettings, nodes: int) -> Iterator[str]:
    from cluster.on_ray.launch import check_nodes_can_access  # needs Ray
    from cluster.on_ray.tasks import for_each

    placement = Placement(nodes=nodes, wait_s=settings.wait_s)
    check_nodes_can_access(photos[0].place, settings.out, placement, "the inputs and --out")
    for photo, outcome in for_each(partial(work_of, model, settings), photos, placement):
        yield outcome if isinstance(outcome, str) else f"{photo.place}: its worker process died repeatedly: {outcome}"
