"""Trains generators that remove blur, measures them, uses and serves them.

In Python:

    import deblur
    model = deblur.load()                      # or a run, or a generator.safetensors
    sharp = model.restore("photo.jpg")         # or an array, or a PIL image
    print(deblur.metrics.psnr(sharp, "original.jpg"))

The modules here are the commands (python -m deblur.train); they import the packages, and never each other.
"""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from deblur.evaluation import metrics as metrics
    from deblur.inference.model import Model


def load(model: str = "embedded", device: str = "auto") -> "Model":
    """A trained generator.

    model   "embedded", the one inside this package; a run (folder or s3:// URL), one of its checkpoints/N folders, or
            a generator.safetensors
    device  "cpu", "cuda", "cuda:1", or "auto": a GPU if available

    Raises cluster.errors.InputError (a ValueError) that says what is wrong.
    """
    from deblur.inference import model as inference  # torch takes seconds to import

    return inference.load(model, device)


def pairs(data: str, split: str = "train") -> "Iterator[tuple[str, np.ndarray, np.ndarray]]":
    """(key, blurred, sharp) of each pair of a packed dataset (python -m deblur.pack); uint8 RGB [H, W, 3].

    data   root of the dataset, a folder or s3://bucket/prefix
    split  train, validation or test

    Raises cluster.errors.InputError naming the splits that exist.
    """
    from deblur.evaluation.evaluator import dataset_pairs

    return dataset_pairs(data, split)[1]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("deblur.evaluation.metrics")
    raise AttributeError(f"module 'deblur' has no attribute {name!r}")
