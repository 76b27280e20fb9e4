"""What every picture of a set scores, restored and as it came."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.data import pictures
from deblur.data.dataset import Dataset
from deblur.data.loader import pairs_of
from deblur.data.shards import read_index
from deblur.evaluation.detection import Detector, match
from deblur.evaluation.lpips import lpips
from deblur.evaluation.quality import psnr, ssim
from deblur.evaluation.scores import Score
from deblur.inference.tiles import restore_picture

KeyedPair = tuple[str, np.ndarray, np.ndarray]  # key, blurred and sharp: uint8 RGB [H, W, 3]


_THREADS = 2  # that decode ahead of the generator


def evaluate(
    model: nn.Module,
    pairs: Iterable[KeyedPair],
    device: torch.device | str,
    *,
    lpips_network: nn.Module | None = None,
    detector: Detector | None = None,
) -> list[Score]:
    """Scores of the pairs, in their order, on full frames. Raises InputError naming a pair that cannot be compared.

    model          in eval mode, on the device
    lpips_network  of `load_lpips`, on the device; None leaves out LPIPS
    detector       None leaves out detection
    """
    return [_score(model, pair, device, lpips_network, detector) for pair in pairs]


def _score(
    model: nn.Module,
    pair: KeyedPair,
    device: torch.device | str,
    lpips_network: nn.Module | None,
    detector: Detector | None,
) -> Score:
    key, blurred, sharp = pair
    if blurred.shape != sharp.shape:
        sizes = " and ".join(f"{picture.shape[1]}x{picture.shape[0]}" for picture in (blurred, sharp))
        raise InputError(f"{key}: the blurred and the sharp picture differ in size ({sizes})")
    restored = restore_picture(model, blurred, device=device)
    before, after, target = (_on(device, picture) for picture in (blurred, restored, sharp))
    try:
        score = Score(
            key=key,
            blurred_psnr=psnr(before, target).item(),
            restored_psnr=psnr(after, target).item(),
            blurred_ssim=ssim(before, target).item(),
            restored_ssim=ssim(after, target).item(),
        )
        if lpips_network is not None:
            score = replace(
                score,
                blurred_lpips=lpips(lpips_network, before, target).item(),
                restored_lpips=lpips(lpips_network, after, target).item(),
            )
    except ValueError as error:  # smaller than SSIM's window, or than AlexNet can take
        raise InputError(f"{key}: {error}") from error
    if detector is not None:
        truth = detector(sharp)
        score = replace(
            score,
            blurred_matches=match(detector(blurred), truth),
            restored_matches=match(detector(restored), truth),
        )
    return score


def _on(device: torch.device | str, picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).to(device)


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
