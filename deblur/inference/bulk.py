"""Many photographs, in folders and buckets: restored here or by the nodes of a cluster, each once."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
import tyro
from torch import nn
from tqdm import tqdm

from cluster.errors import FINAL, InputError
from cluster.on_ray.placement import Placement
from cluster.storage import Store, absolute, join, open_store
from deblur.data.pictures import SUFFIXES
from deblur.inference.generator import build_model, pick_device
from deblur.inference.photograph import read_photograph, write_photograph
from deblur.inference.tiles import FACTOR, MARGIN, MAX_PIXELS, RAMP, TILE, restore_picture

MADE_BY = "restored-by.json"


_SMALLEST_TILE = 2 * MARGIN + RAMP + FACTOR


@dataclass(frozen=True, kw_only=True)
class RestoreSettings:
    inputs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IN...")]]
    """Photographs, and folders and s3://bucket/prefixes of them."""
    out: str
    """Folder or s3://bucket/prefix for the restored ones."""
    model: str
    """A run (folder or s3:// URL), or a generator.safetensors."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto is a GPU where there is one."""
    tile: int = 0
    """Work in tiles of so many pixels a side; 0 does where a photograph is large or memory short."""
    overwrite: bool = False
    """Remove what is in --out already, and restore it again."""
    nodes: int | None = None
    """Machines of a Ray cluster, with all their GPUs; else this process does it."""
    wait_s: float = 600.0
    """Seconds to wait for nodes that are not there."""

    def __post_init__(self) -> None:
        if self.tile and self.tile < _SMALLEST_TILE:
            raise InputError(f"--tile is {self.tile}; it must be at least {_SMALLEST_TILE}, or 0 for automatic")
        if self.nodes is not None and self.nodes < 1:
            raise InputError(f"--nodes is {self.nodes}; it must be at least 1")


@dataclass(frozen=True)
class Photo:
    """Where one comes from, and what it is called below --out."""

    folder: str
    """Folder or URL."""
    name: str
    target: str

    @property
    def place(self) -> str:
        """The file or object, by one name however it was reached."""
        return _place(self.folder, self.name)


Work = Callable[[Photo], str]


def work_of(model: bytes, settings: RestoreSettings) -> Work:
    """What restores one photograph after the other in this process, returning why not where it cannot."""
    device = pick_device(settings.device)
    generator = build_model(model, settings.model, device)
    store = cache(open_store)

    def work(photo: Photo) -> str:
        try:
            data = store(photo.folder).get(photo.name)
            suffix = PurePosixPath(photo.target).suffix
            restored = restore_file(generator, data, photo.place, suffix, device, settings.tile)
            store(settings.out).put(photo.target, restored)
        except InputError as error:
            return str(error)
        except torch.OutOfMemoryError:
            return f"{photo.place}: no GPU memory for one tile; choose a smaller --tile, or --device cpu"
        except (*FINAL, torch.AcceleratorError):  # would befall the others, too
            raise
        except Exception as error:  # one odd photograph among millions is no reason not to do the others
            return f"{photo.place}: cannot be restored ({type(error).__name__}: {error})"
        return ""

    return work


def restore_file(
    generator: nn.Module, data: bytes, name: str, suffix: str, device: torch.device, tile: int = 0
) -> bytes:
    """The restored photograph as a file of the format that the suffix means. Raises InputError with its name."""
    photograph = read_photograph(data, name)
    limit = {"max_pixels": 0, "tile": tile} if tile else {"max_pixels": MAX_PIXELS, "tile": TILE}
    restored = restore_picture(generator, photograph.pixels, device=device, **limit)
    return write_photograph(photograph, restored, name, suffix)


def plan(inputs: Sequence[str], out: str) -> list[Photo]:
    """Each photograph. Raises InputError before any work where one would be overwritten."""
    if not inputs:
        raise InputError("nothing to restore: name photographs, or folders of them")
    targets: dict[str, Photo] = {}
    for photo in _found(inputs, out):
        other = targets.setdefault(photo.target, photo)
        if other.place != photo.place:
            both = join(out, photo.target)
            raise InputError(f"{other.place} and {photo.place} would both become {both}; restore them one at a time")
    sources = {photo.place for photo in targets.values()}
    for target in targets:
        if _place(out, target) in sources:
            raise InputError(
                f"{join(out, target)} is an input and would be overwritten; choose an --out away from the inputs"
            )
    return list(targets.values())


def _found(inputs: Sequence[str], out: str) -> Iterator[Photo]:
    """Each photograph and its place below `out`."""
    for given in inputs:
        is_photo = PurePosixPath(given).suffix.lower() in SUFFIXES
        is_url = "://" in given
        if Path(given).is_dir() or (is_url and not is_photo):
            inside = [key for key in open_store(given).list() if _is_photo(key) and not _is_made(given, key, out)]
            if not inside:
                raise InputError(f"{given}: no photograph in this folder; looked for {', '.join(SUFFIXES)}")
            yield from (Photo(absolute(given), key, key) for key in inside)
        elif not is_url and not Path(given).is_file():
            raise InputError(f"{given}: no such file or folder")
        elif not is_photo:
            raise InputError(f"{given}: not one of {', '.join(SUFFIXES)}; convert it")
        else:
            folder, _, name = absolute(given).rpartition("/")
            yield Photo(folder, name, name)


def _is_photo(key: str) -> bool:
    return PurePosixPath(key).suffix.lower() in SUFFIXES


def _is_made(folder: str, name: str, out: str) -> bool:
    """Whether it is one of the restored ones, in an `out` inside the folder of the inputs."""
    inputs, restored = (f"{_place(root, '').rstrip('/')}/" for root in (folder, out))
    return restored != inputs and restored.startswith(inputs) and _place(folder, name).startswith(restored)


def _place(folder: str, name: str) -> str:
    """One name for a file or object, however it is reached."""
    return join(folder, name) if "://" in folder else str((Path(folder) / name).resolve())


def left_to_do(photos: Sequence[Photo], out: Store, model: bytes, settings: RestoreSettings) -> list[Photo]:
    """Those that are not in `out` yet.

    Raises InputError where what is there was not made by this model: it would be taken for this one's.
    """
    wanted = json.dumps({"generator": hashlib.sha256(model).hexdigest(), "tile": settings.tile}).encode()
    there = set(out.list())
    if settings.overwrite:
        for photo in photos:
            if photo.target in there:
                out.delete(photo.target)
        out.put(MADE_BY, wanted)
        return list(photos)
    left = [photo for photo in photos if photo.target not in there]
    if len(left) < len(photos) and MADE_BY not in there:
        raise InputError(f"{out.url}: holds photographs of these names that were not restored; choose another --out")
    if not out.create(MADE_BY, wanted):
        raise InputError(
            f"{out.url}: holds photographs restored by another model or in other tiles ({MADE_BY}); choose another "
            "--out, or --overwrite. (A run in training has another model with each checkpoint: name one "
            "generator.safetensors of it)"
        )
    return left


def restore(photos: Sequence[Photo], model: bytes, settings: RestoreSettings) -> list[str]:
    """Restores photographs here or on the cluster; returns one line for each that failed."""
    seconds = 0.1 if sys.stderr.isatty() else 60  # a line a minute in the log of a job
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
        yield outcome if isinstance(outcome, str) else f"{photo.place}: its process died, more than once: {outcome}"
