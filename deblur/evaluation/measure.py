"""Evaluates a generator on a dataset or on folders: settings in, tables and JSON out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.evaluation import detection, lpips
from deblur.evaluation.detection import Detector, DetectorName, FaceCascade, NetworkDetector
from deblur.evaluation.evaluator import KeyedPair, dataset_pairs, evaluate, folder_pairs
from deblur.evaluation.quality import DEFINITION
from deblur.evaluation.scores import as_json, summary, table
from deblur.models.trained import EMBEDDED, load_model, pick_device


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    model: str = EMBEDDED
    """A run (folder or s3:// URL), which gives its best checkpoint, one of its checkpoints/N folders, or a
    generator.safetensors; default: the model inside this package."""
    data: str | None = None
    """Root of a packed dataset, folder or s3:// URL [env DEBLUR_DATA]."""
    blurred: str | None = None
    """Folder or s3://bucket/prefix of blurred pictures, instead of a dataset."""
    sharp: str | None = None
    """Folder or s3://bucket/prefix of sharp pictures with the same names."""
    split: str = "test"
    """Split of the dataset."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: a GPU if available."""
    limit: int | None = None
    """Maximum number of pictures; the first ones."""
    json: Path | None = None
    """File for the results as JSON."""
    lpips: bool = False
    """Also measure LPIPS; needs pip install -e '.[lpips]'."""
    lpips_weights: str | None = None
    """State dict of torchvision's alexnet, file or s3:// URL; default: torchvision's ImageNet weights."""
    detect: bool = False
    """Also measure how many of a detector's objects in the sharp pictures it finds in the others."""
    detector: DetectorName | None = None
    """A detector of torchvision; default: scikit-image's cascade of frontal faces."""
    detector_weights: str | None = None
    """State dict of the detector, file or s3:// URL."""

    def __post_init__(self) -> None:
        if (self.blurred is None) != (self.sharp is None):
            raise InputError("--blurred and --sharp are a pair of folders; give both, or --data")
        if self.blurred is not None and self.data is not None:
            raise InputError("--data and --blurred/--sharp exclude each other; give one of them")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; it must be at least 1")
        if self.lpips_weights and not self.lpips:
            raise InputError("--lpips-weights has no effect without --lpips; add it")
        if (self.detector or self.detector_weights) and not self.detect:
            raise InputError("--detector and --detector-weights have no effect without --detect; add it")
        if self.detector and not self.detector_weights:
            raise InputError(
                f"--detector {self.detector} needs weights: add --detector-weights FILE or s3:// URL of a state dict "
                "with torchvision's names, or remove both for faces, which need none"
            )
        if self.detector_weights and not self.detector:
            names = ", ".join(get_args(DetectorName))
            raise InputError(f"--detector-weights needs its network; add --detector, one of {names}")


def measure(settings: EvaluateSettings) -> str:
    """Evaluates a generator, writes the JSON file if there is one, and returns the results as text.

    Raises InputError for whatever is missing before the first picture is restored.
    """
    count, pairs = _pairs(settings)
    limit = min(count, settings.limit or count)
    device = pick_device(settings.device)
    # All metrics are loaded before the first picture: errors come at once, not after an hour.
    lpips_network = lpips.load_lpips(settings.lpips_weights, device) if settings.lpips else None
    detector = _detector(settings, device)
    definition = _definition(settings, detector)
    model = load_model(settings.model, device)
    with logging_redirect_tqdm():
        progress = tqdm(islice(pairs, limit), total=limit, unit="picture", disable=None)
        scores = evaluate(model, progress, device, lpips_network=lpips_network, detector=detector)
    if settings.json:
        open_store(settings.json.parent).put(settings.json.name, as_json(scores, settings.model, definition).encode())
    return f"{limit} of {count} pictures\n\n{table(scores)}\n\n{summary(scores)}\n\n{definition}"


def _pairs(settings: EvaluateSettings) -> tuple[int, Iterator[KeyedPair]]:
    if settings.blurred and settings.sharp:
        return folder_pairs(settings.blurred, settings.sharp)
    data = settings.data or os.environ.get("DEBLUR_DATA")
    if not data:
        raise InputError("no pictures to evaluate on: give --data ROOT, set DEBLUR_DATA, or give --blurred and --sharp")
    return dataset_pairs(data, settings.split)


def _detector(settings: EvaluateSettings, device: torch.device) -> Detector | None:
    if settings.detector and settings.detector_weights:
        return NetworkDetector(settings.detector, settings.detector_weights, device)
    return FaceCascade() if settings.detect else None


def _definition(settings: EvaluateSettings, detector: Detector | None) -> str:
    """The definition of each metric, one per line."""
    lines = [DEFINITION]
    if settings.lpips:
        lines.append(lpips.definition(settings.lpips_weights))
    if detector is not None:
        lines.append(detection.definition(detector))
    return "\n".join(lines)
