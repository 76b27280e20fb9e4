"""Measures a generator: python -m deblur.evaluate --model runs/RUN [--data ROOT | --blurred DIR --sharp DIR]

PSNR and SSIM of every restored picture on full frames, then a table of all judges, beside what the blurred pictures
score themselves: a generator that changes nothing gains nothing. Definitions are printed with the numbers.

--lpips     also LPIPS, with ImageNet's AlexNet from torchvision, or --lpips-weights FILE_OR_S3
--detect    also how much of what a detector sees in the sharp pictures it sees in the others: scikit-image's faces, or
            --detector fasterrcnn_resnet50_fpn_v2 --detector-weights FILE_OR_S3 (torchvision's)
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import torch
import tyro
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import InputError, one_line_errors
from cluster.storage import open_store
from deblur.evaluation import detection
from deblur.evaluation import lpips as perceptual
from deblur.evaluation.detection import Detector, DetectorName, FaceCascade, NetworkDetector
from deblur.evaluation.evaluator import KeyedPair, dataset_pairs, evaluate, folder_pairs
from deblur.evaluation.lpips import load_lpips
from deblur.evaluation.quality import DEFINITION
from deblur.evaluation.scores import as_json, summary, table
from deblur.inference.generator import load_model, pick_device


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
    """Also LPIPS; needs pip install -e '.[lpips]'."""
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
