"""Measures a generator: python -m deblur.evaluate --model runs/RUN [--data ROOT | --blurred DIR --sharp DIR]

PSNR and SSIM of every restored picture and their means, on full frames, beside what the blurred pictures score
themselves: a generator that changes nothing gains nothing. The definition is printed with the numbers.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import InputError, one_line_errors
from cluster.storage import open_store
from deblur.data import pictures
from deblur.data.loader import pairs_of
from deblur.data.shards import read_index
from deblur.data.stream import Dataset
from deblur.quality import DEFINITION, psnr, ssim
from deblur.tiles import restore_picture
from deblur.trained import load_model, pick_device

KeyedPair = tuple[str, np.ndarray, np.ndarray]  # key, blurred and sharp: uint8 RGB [H, W, 3]
_THREADS = 2  # that decode ahead of the generator


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str
    """A run (folder or s3:// URL), or a generator.safetensors."""
    data: str | None = None
    """Root of a packed dataset, folder or s3:// URL [env DEBLUR_DATA]."""
    blurred: Path | None = None
    """Folder of blurred pictures, instead of a dataset."""
    sharp: Path | None = None
    """Folder of the sharp ones, under equal names."""
    split: str = "test"
    """Split of the dataset."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto is a GPU where there is one."""
    limit: int | None = None
    """Only so many pictures, the first ones."""
    json: Path | None = None
    """File that takes the same numbers as JSON."""

    def __post_init__(self) -> None:
        if (self.blurred is None) != (self.sharp is None):
            raise InputError("--blurred and --sharp are a pair of folders; give both, or --data")
        if self.blurred is not None and self.data is not None:
            raise InputError("--data and --blurred/--sharp exclude each other; give one of them")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One picture's scores; PSNR in dB, infinite where two pictures are equal."""

    key: str
    blurred_psnr: float
    restored_psnr: float
    blurred_ssim: float
    restored_ssim: float


def evaluate(model: nn.Module, pairs: Iterable[KeyedPair], device: torch.device | str) -> list[Score]:
    """Scores of the pairs, in their order, on full frames. Raises InputError naming a pair that cannot be compared.

    model  in eval mode, on the device
    """
    return [_score(model, key, blurred, sharp, device) for key, blurred, sharp in pairs]


def _score(model: nn.Module, key: str, blurred: np.ndarray, sharp: np.ndarray, device: torch.device | str) -> Score:
    if blurred.shape != sharp.shape:
        sizes = " and ".join(f"{picture.shape[1]}x{picture.shape[0]}" for picture in (blurred, sharp))
        raise InputError(f"{key}: the blurred and the sharp picture differ in size ({sizes})")
    target = _on(device, sharp)
    before, after = _on(device, blurred), _on(device, restore_picture(model, blurred, device=device))
    try:
        return Score(
            key=key,
            blurred_psnr=psnr(before, target).item(),
            restored_psnr=psnr(after, target).item(),
            blurred_ssim=ssim(before, target).item(),
            restored_ssim=ssim(after, target).item(),
        )
    except ValueError as error:  # smaller than SSIM's window
        raise InputError(f"{key}: {error}") from error


def _on(device: torch.device | str, picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).to(device)


def mean(scores: Sequence[Score]) -> Score:
    """The mean of the pictures' values, under the key "mean"."""
    columns = {name: [asdict(score)[name] for score in scores] for name in asdict(scores[0]) if name != "key"}
    return Score(key="mean", **{name: fmean(values) for name, values in columns.items()})


def table(scores: Sequence[Score]) -> str:
    """A line for each picture, their mean, and what the generator gains over the blurred pictures."""
    average = mean(scores)
    width = max(len(score.key) for score in [*scores, average])
    lines = [f"{'key':{width}} | blurred PSNR | restored PSNR | blurred SSIM | restored SSIM"]
    for score in [*scores, average]:
        lines.append(
            f"{score.key:{width}} | {score.blurred_psnr:12.2f} | {score.restored_psnr:13.2f} "
            f"| {score.blurred_ssim:12.4f} | {score.restored_ssim:13.4f}"
        )
    lines.insert(-1, "-" * len(lines[0]))
    gain_db, gain_ssim = (average.restored_psnr - average.blurred_psnr, average.restored_ssim - average.blurred_ssim)
    return "\n".join([*lines, f"gain over blurred: {gain_db:+.2f} dB PSNR, {gain_ssim:+.4f} SSIM"])


def as_json(scores: Sequence[Score], model: str) -> str:
    """The table as JSON; infinite PSNR becomes null, which JSON knows."""
    rows = [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in map(asdict, [*scores, mean(scores)])
    ]
    result: dict[str, Any] = {"model": model, "definition": DEFINITION, "mean": rows.pop(), "pictures": rows}
    return json.dumps(result, indent=2)


def dataset_pairs(url: str, split_name: str) -> tuple[int, Iterator[KeyedPair]]:
    """How many pairs a split of a dataset has, and the pairs. Raises InputError naming the splits there are."""
    store = open_store(url)
    dataset = Dataset(store, read_index(store))
    splits = dataset.index.splits
    if not (split_name in splits and splits[split_name].shards):
        raise InputError(f"{store.url}: has no split {split_name!r}; choose --split {' or '.join(splits)}")
    split = splits[split_name]
    keys = [sample.key for shard in split.shards for sample in shard.samples]
    pairs = pairs_of(dataset, split, range(len(keys)), _THREADS)
    return len(keys), ((key, *pair) for key, pair in zip(keys, pairs, strict=True))


def folder_pairs(blurred: Path, sharp: Path) -> tuple[int, Iterator[KeyedPair]]:
    """How many pairs of equal names two folders hold, and the pairs. Raises InputError where a partner is missing."""
    names = _names(blurred)
    for name in sorted(names ^ _names(sharp)):
        here, there = (blurred, sharp) if name in names else (sharp, blurred)
        raise InputError(f"{here / name}: has no partner {there / name}; add it, or remove the one without")
    decoded = (
        (name, *(pictures.decode(_read(side / name), str(side / name)) for side in (blurred, sharp)))
        for name in sorted(names)
    )
    return len(names), decoded


def _names(folder: Path) -> set[str]:
    """Paths of the pictures below a folder."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in pictures.SUFFIXES and path.is_file())
    names = {path.relative_to(folder).as_posix() for path in found}
    if not names:
        raise InputError(f"{folder}: no picture in this folder; looked for {', '.join(pictures.SUFFIXES)}")
    return names


def _read(path: Path) -> bytes:
    return open_store(path.parent).get(path.name)


def _chosen_pairs(settings: Settings) -> tuple[int, Iterator[KeyedPair]]:
    if settings.blurred and settings.sharp:
        return folder_pairs(settings.blurred, settings.sharp)
    data = settings.data or os.environ.get("DEBLUR_DATA")
    if not data:
        raise InputError("nothing to measure on: give --data ROOT, set DEBLUR_DATA, or give --blurred and --sharp")
    return dataset_pairs(data, settings.split)


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.evaluate")
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        count, pairs = _chosen_pairs(settings)
        chosen = min(count, settings.limit or count)
        device = pick_device(settings.device)
        model = load_model(settings.model, device)
        with logging_redirect_tqdm():
            scores = evaluate(model, tqdm(islice(pairs, chosen), total=chosen, unit="picture", disable=None), device)
        print(f"{DEFINITION}\n{chosen} of {count} pictures\n\n{table(scores)}")
        if settings.json:
            open_store(settings.json.parent).put(settings.json.name, as_json(scores, settings.model).encode())


if __name__ == "__main__":
    main()
