"""The whole way on two cores: pack the sample photographs, train, restore the held-out one, report.

python -m deblur.demo    prints one line of JSON last; everything it writes lies in runs/demo
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro

from cluster.errors import one_line_errors
from deblur import recipe as recipes
from deblur.data import pictures
from deblur.data.loader import pairs_of
from deblur.evaluate import Score, evaluate
from deblur.recipe import Recipe
from deblur.report import draw_report
from deblur.restore import load_model
from deblur.tiles import restore_picture
from deblur.train import Settings, open_dataset, prepare, train

HELD_OUT = "test"  # the split of the one photograph that nothing is trained or chosen on


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    runs: Path = Path("runs")
    """Folder that takes the packed photographs and the run."""
    ranks: int = 2
    """Ranks that train together on this machine."""
    recipe: Recipe = field(default_factory=recipes.demo)


def demo(settings: DemoSettings) -> dict[str, object]:
    """Runs the whole way and returns what is printed. A finished run is not trained again, only measured."""
    started = time.monotonic()
    training = Settings(runs=str(settings.runs), run="demo", ranks_per_node=settings.ranks, recipe=settings.recipe)
    metrics = train(training)
    # From here on nothing is learned: the last checkpoint counts, whatever its validation said.
    run_folder = settings.runs / "demo"
    model = load_model(str(run_folder), torch.device("cpu"))
    ...
    return {}
