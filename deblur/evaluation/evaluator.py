"""Scores of the blurred and the restored picture of every pair."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cluster.errors import InputError
from deblur.data.dataset import read_dataset
from deblur.data.files import File
from deblur.data.layouts import match_folders
from deblur.data.loader import pairs_of
from deblur.data.photographs import read_photograph
from deblur.evaluation.detection import Detector, match
from deblur.evaluation.lpips import lpips
from deblur.evaluation.quality import psnr, ssim
from deblur.evaluation.scores import Score
from deblur.inference.tiles import restore_picture

KeyedPair = tuple[str, np.ndarray, np.ndarray]  # key, blurred and sharp: uint8 RGB [H, W, 3]
_THREADS = 2  # decode ahead of the generator


def evaluate(
    model: nn.Module,
    pairs: Iterable[KeyedPair],
    device: torch.device | str,
    *,
    lpips_network: nn.Module | None = None,
    detector: Detector | None = None,
) -> list[Score]:
    """Scores of the pairs, in order, on full frames. Raises InputError naming a pair that cannot be compared.

    model          in eval mode, on the device
    lpips_network  from `load_lpips`, on the device; None skips LPIPS
    detector       None skips detection
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
        raise InputError(f"{key}: the blurred and the sharp picture must have the same size, not {sizes}")
    restored = restore_picture(model, blurred, device=device)
    before, after, target = (_tensor(picture, device) for picture in (blurred, restored, sharp))
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
    except ValueError as error:  # smaller than SSIM's window or AlexNet's minimum
        raise InputError(f"{key}: {error}") from error
    if detector is not None:
        truth = detector(sharp)
        score = replace(
            score,
            blurred_matches=match(detector(blurred), truth),
            restored_matches=match(detector(restored), truth),
        )
    return score


def _tensor(picture: np.ndarray, device: torch.device | str) -> Tensor:
    """[1, 3, H, W] uint8."""
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).to(device)


def dataset_pairs(url: str, split_name: str) -> tuple[int, Iterator[KeyedPair]]:
    """Number of pairs in a split of a dataset, and the pairs. Raises InputError naming the existing splits."""
    dataset = read_dataset(url)
    splits = dataset.index.splits
    if not (split_name in splits and splits[split_name].shards):
        raise InputError(f"{url}: no split {split_name!r}; choose --split {' or '.join(splits)}")
    split = splits[split_name]
    keys = [sample.key for shard in split.shards for sample in dataset.samples(shard)]
    pairs = pairs_of(dataset, split, range(len(keys)), _THREADS)
    return len(keys), ((key, *pair) for key, pair in zip(keys, pairs, strict=True))


def folder_pairs(blurred: str, sharp: str) -> tuple[int, Iterator[KeyedPair]]:
    """Number of pairs in two folders or buckets, by relative paths without endings, and the pairs as packing has them.

    Raises InputError for a picture without its counterpart.
    """
    found = [pair for pairs in match_folders(blurred, sharp).splits.values() for pair in pairs]
    found.sort(key=lambda pair: pair.blurred.key)
    return len(found), ((pair.blurred.key, _read(pair.blurred), _read(pair.sharp)) for pair in found)


def _read(file: File) -> np.ndarray:
    return read_photograph(file.read(), str(file)).pixels
