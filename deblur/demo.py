"""The whole way on two cores: pack the sample photographs, train, restore the held-out one, report.

python -m deblur.demo    writes into runs/demo; the last line that it prints is JSON
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from cluster.errors import one_line_errors
from cluster.storage import join
from deblur.config import recipes
from deblur.config.recipes import Recipe
from deblur.data import pictures
from deblur.data.dataset import open_dataset
from deblur.data.loader import pairs_of
from deblur.data.packing import packed_samples
from deblur.evaluation.evaluator import evaluate
from deblur.inference.tiles import restore_picture
from deblur.models.trained import load_model
from deblur.plots.curves import report_png
from deblur.training.job import TrainSettings, train

RANKS = 2
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    runs: Path = Path("runs")
    """Folder for the packed photographs and the run."""


def demo(settings: DemoSettings, recipe: Recipe) -> dict[str, Any]:
    """Packs, trains, measures and draws; returns what is printed. A finished run is measured again, not trained."""
    started = time.monotonic()
    data = packed_samples(str(settings.runs))
    training = time.monotonic()
    run = train(TrainSettings(data=data, runs=str(settings.runs), run="demo", ranks_per_node=RANKS, recipe=recipe))
    trained = time.monotonic()

    # The last checkpoint counts, whatever validation said of others; the photograph is in no other split.
    model = load_model(run.url, _CPU)
    dataset = open_dataset(data)
    split = dataset.index.splits["test"]
    blurred, sharp = next(pairs_of(dataset, split, range(1), 1))
    key = split.shards[0].samples[0].key
    (score,) = evaluate(model, [(key, blurred, sharp)], _CPU)
    restored = restore_picture(model, blurred, device=_CPU)
    run.store.put("restored.png", pictures.encode_png(restored))

    strip = [
        (f"blurred, {score.blurred_psnr:.2f} dB", blurred),
        (f"restored, {score.restored_psnr:.2f} dB", restored),
        ("sharp", sharp),
    ]
    metrics = run.read_metrics()
    title = f"{key}, held out; {metrics[-1]['images_seen']:,} crops of other photographs seen"
    run.store.put("report.png", report_png({run.name: metrics}, {run.name: strip}, title))
    return {
        "blurred_psnr": round(score.blurred_psnr, 3),
        "restored_psnr": round(score.restored_psnr, 3),
        "gain_db": round(score.restored_psnr - score.blurred_psnr, 3),
        "seconds": round(time.monotonic() - started, 1),
        "training_seconds": round(trained - training, 1),
        "blurred_ssim": round(score.blurred_ssim, 4),
        "restored_ssim": round(score.restored_ssim, 4),
        "loss": asdict(recipe.loss),
        "report": join(run.url, "report.png"),
    }


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(DemoSettings, description=__doc__, prog="python -m deblur.demo")
        print(json.dumps(demo(settings, recipes.demo())))


if __name__ == "__main__":
    main()
