"""Measures a generator: python -m deblur.evaluate --model runs/RUN [--data ROOT | --blurred DIR --sharp DIR]

PSNR and SSIM of every restored picture on full frames, then a table of all judges, beside what the blurred pictures
score themselves: a generator that changes nothing gains nothing. Definitions are printed with the numbers.

--lpips     also LPIPS, with ImageNet's AlexNet from torchvision, or --lpips-weights FILE_OR_S3
--detect    also how much of what a detector sees in the sharp pictures it sees in the others: scikit-image's faces, or
            --detector fasterrcnn_resnet50_fpn_v2 --detector-weights FILE_OR_S3 (torchvision's)
"""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import InputError, one_line_errors
from cluster.storage import open_store
from deblur import detection, perceptual
from deblur.data import pictures
from deblur.data.dataset import Dataset
from deblur.data.loader import pairs_of
from deblur.data.shards import read_index
from deblur.detection import Detector, DetectorName, FaceCascade, NetworkDetector, match
from deblur.inference.generator import load_model, pick_device
from deblur.inference.tiles import restore_picture
from deblur.perceptual import load_lpips, lpips
from deblur.quality import DEFINITION, psnr, ssim
from deblur.scores import Score, as_json, summary, table

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
    lpips: bool = False
    """Also LPIPS; needs pip install 'deblur[lpips]'."""
    lpips_weights: str | None = None
    """State dict of torchvision's alexnet, file or s3:// URL; else torchvision's ImageNet weights."""
    detect: bool = False
    """Also what a detector sees again of what it sees in the sharp pictures."""
    detector: DetectorName | None = None
    """One of torchvision's instead of scikit-image's cascade of frontal faces."""
    detector_weights: str | None = None
    """Its state dict, file or s3:// URL."""

    def __post_init__(self) -> None:
        if (self.blurred is None) != (self.sharp is None):
            raise InputError("--blurred and --sharp are a pair of folders; give both, or --data")
        if self.blurred is not None and self.data is not None:
            raise InputError("--data and --blurred/--sharp exclude each other; give one of them")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; it must be at least 1")
        if self.lpips_weights and not self.lpips:
            raise InputError("--lpips-weights is for LPIPS, which is not asked for; add --lpips")
        if (self.detector or self.detector_weights) and not self.detect:
            raise InputError("--detector and --detector-weights are for detection; add --detect")
        if self.detector and not self.detector_weights:
            raise InputError(
                f"--detector {self.detector}: give its weights, too: --detector-weights FILE or s3:// URL of a state "
                "dict with torchvision's names; or leave both out for faces, which needs none"
            )
        if self.detector_weights and not self.detector:
            names = ", ".join(get_args(DetectorName))
            raise InputError(f"--detector-weights is given without its network; add --detector, one of {names}")


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


def _chosen_pairs(settings: Settings) -> tuple[int, Iterator[KeyedPair]]:
    if settings.blurred and settings.sharp:
        return folder_pairs(settings.blurred, settings.sharp)
    data = settings.data or os.environ.get("DEBLUR_DATA")
    if not data:
        raise InputError("nothing to measure on: give --data ROOT, set DEBLUR_DATA, or give --blurred and --sharp")
    return dataset_pairs(data, settings.split)


def _chosen_detector(settings: Settings, device: torch.device) -> Detector | None:
    if settings.detector and settings.detector_weights:
        return NetworkDetector(settings.detector, settings.detector_weights, device)
    return FaceCascade() if settings.detect else None


def _definition(settings: Settings, detector: Detector | None) -> str:
    """What the numbers are, a line for each judge."""
    lines = [DEFINITION]
    if settings.lpips:
        lines.append(perceptual.definition(settings.lpips_weights))
    if detector is not None:
        lines.append(detection.definition(detector))
    return "\n".join(lines)


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.evaluate")
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        count, pairs = _chosen_pairs(settings)
        chosen = min(count, settings.limit or count)
        device = pick_device(settings.device)
        # All judges before the first picture: whatever they lack is said at once, not after an hour.
        lpips_network = load_lpips(settings.lpips_weights, device) if settings.lpips else None
        detector = _chosen_detector(settings, device)
        definition = _definition(settings, detector)
        model = load_model(settings.model, device)
        with logging_redirect_tqdm():
            shown = tqdm(islice(pairs, chosen), total=chosen, unit="picture", disable=None)
            scores = evaluate(model, shown, device, lpips_network=lpips_network, detector=detector)
        print(f"{chosen} of {count} pictures\n\n{table(scores)}\n\n{summary(scores)}\n\n{definition}")
        if settings.json:
            text = as_json(scores, settings.model, definition)
            open_store(settings.json.parent).put(settings.json.name, text.encode())


if __name__ == "__main__":
    main()
