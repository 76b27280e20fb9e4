"""The whole way on two cores: pack the sample photographs, fine-tune, restore the held-out one, report.

The run starts from the model inside this package; the report shows what that restores, and what fine-tuning adds.

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
from deblur.config import presets
from deblur.config.recipes import Recipe
from deblur.data import pictures
from deblur.data.dataset import open_dataset
from deblur.data.loader import pairs_of
from deblur.data.packing import packed_samples
from deblur.evaluation.evaluator import evaluate
from deblur.inference.tiles import restore_picture
from deblur.models.names import EMBEDDED
from deblur.models.trained import load_model
from deblur.plots.curves import report_png
from deblur.training.job import train
from deblur.training.settings import TrainSettings

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
    run = train(
        TrainSettings(
            data=data, runs=str(settings.runs), run="demo", ranks_per_node=RANKS, init_from=EMBEDDED, recipe=recipe
        )
    )
    trained = time.monotonic()

    # The last checkpoint counts, whatever validation said of others; the photograph is in no other split.
    tuned = run.checkpoints.url(run.checkpoints.list()[-1])
    dataset = open_dataset(data)
    split = dataset.index.splits["test"]
    blurred, sharp = next(pairs_of(dataset, split, range(1), 1))
    key = dataset.samples(split.shards[0])[0].key
    restored, scores = {}, {}
    for name in (EMBEDDED, tuned):
        model = load_model(name, _CPU)
        (scores[name],) = evaluate(model, [(key, blurred, sharp)], _CPU)
        restored[name] = restore_picture(model, blurred, device=_CPU)
    before, after = scores[EMBEDDED], scores[tuned]
    run.store.put("restored.png", pictures.encode_png(restored[tuned]))

    strip = [
        (f"blurred, {after.blurred_psnr:.2f} dB", blurred),
        (f"embedded model, {before.restored_psnr:.2f} dB", restored[EMBEDDED]),
        (f"fine-tuned, {after.restored_psnr:.2f} dB", restored[tuned]),
        ("sharp", sharp),
    ]
    metrics = run.read_metrics()
    title = f"{key}, held out; fine-tuned on {metrics[-1]['images_seen']:,} crops of other photographs"
    run.store.put("report.png", report_png({run.name: metrics}, {run.name: strip}, title))
    return {
        "blurred_psnr": round(after.blurred_psnr, 3),
        "embedded_psnr": round(before.restored_psnr, 3),
        "restored_psnr": round(after.restored_psnr, 3),
        "embedded_gain_db": round(before.restored_psnr - before.blurred_psnr, 3),
        "gain_db": round(after.restored_psnr - after.blurred_psnr, 3),
        "seconds": round(time.monotonic() - started, 1),
        "training_seconds": round(trained - training, 1),
        "blurred_ssim": round(after.blurred_ssim, 4),
        "embedded_ssim": round(before.restored_ssim, 4),
        "restored_ssim": round(after.restored_ssim, 4),
        "loss": asdict(recipe.loss),
        "report": join(run.url, "report.png"),
    }


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(DemoSettings, description=__doc__, prog="python -m deblur.demo")
        print(json.dumps(demo(settings, presets.fine_tune())))


if __name__ == "__main__":
    main()
