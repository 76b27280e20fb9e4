"""Evaluates a generator on a dataset or on folders: settings in, tables and JSON out."""

import os
from collections.abc import Iterator
from itertools import islice

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.evaluation import detection, lpips
from deblur.evaluation.detection import Detector, FaceCascade, NetworkDetector
from deblur.evaluation.evaluator import KeyedPair, dataset_pairs, evaluate, folder_pairs
from deblur.evaluation.quality import DEFINITION
from deblur.evaluation.scores import as_json, summary, table
from deblur.evaluation.settings import EvaluateSettings
from deblur.models.trained import load_model, pick_device


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
