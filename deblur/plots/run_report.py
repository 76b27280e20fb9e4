"""The report of runs: losses, validation scores against the blurred input, throughput and samples."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from markupsafe import Markup

from cluster.errors import InputError, NotFound
from cluster.storage import join, open_store
from deblur.config.recipes import flat
from deblur.data import pictures
from deblur.plots.curves import PANELS, Metrics, Strip, detail_of, panel_svg, report_png
from deblur.plots.html import render
from deblur.training.run import Run

_LABELS = ("blurred", "restored", "sharp")
_SAMPLES = 3  # shown of a run
_MAX_WIDTH = 640  # pixels of an image on the page
_COUNTERS = ("restarts", "updates_lost", "bad_samples", "storage_retries")


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a report shows of a run."""

    metrics: Metrics
    recipe: Mapping[str, Any]
    samples: Mapping[int, Strip]
    """By images seen, evenly spaced over the run, the newest last."""

    @property
    def newest(self) -> Strip:
        return self.samples[max(self.samples)] if self.samples else []


def read(url: str) -> RunData:
    """Reads a run. Raises InputError with the path if its files are missing or damaged."""
    run = Run(url)
    try:
        recipe = json.loads(run.store.get("recipe.json"))
    except NotFound:
        recipe = {}
    except ValueError as error:
        raise InputError(
            f"{join(run.url, 'recipe.json')}: invalid JSON ({error}); restore the file or delete it"
        ) from error
    return RunData(metrics=run.read_metrics(), recipe=flat(recipe), samples=_samples(run))


def write_report(urls: Sequence[str], out: str | None) -> list[str]:
    """Writes report.html and report.png of runs into a folder or under an s3:// URL; returns their paths.

    Without `out`, one run's report goes into the run, that of several into the working directory. Raises InputError if
    a run cannot be read.
    """
    runs = {name: read(url) for name, url in zip(short_names(urls), urls, strict=True)}
    store = open_store(out or (urls[0] if len(runs) == 1 else "."))
    metrics, newest = ({name: getattr(run, of) for name, run in runs.items()} for of in ("metrics", "newest"))
    store.put("report.html", page(runs).encode())
    store.put("report.png", report_png(metrics, newest, title_of(runs)))
    return [join(store.url, name) for name in ("report.html", "report.png")]


def page(runs: Mapping[str, RunData]) -> str:
    """The HTML page for runs by name."""
    metrics = {name: run.metrics for name, run in runs.items()}
    return render(
        "deblur.plots",
        "report.html.j2",
        title=title_of(runs),
        results={name: results(run.metrics) for name, run in runs.items()},
        # matplotlib has escaped the names in it.
        curves=[(panel.title, Markup(panel_svg(panel, metrics))) for panel in PANELS],  # noqa: S704
        samples={name: _figures(run) for name, run in runs.items()},
        recipes=differences({name: run.recipe for name, run in runs.items()}),
    )


def results(metrics: Metrics) -> dict[str, str]:
    """A run's results by their label."""
    needed = ("validation_psnr", "validation_blurred_psnr")
    validations = [line for line in metrics if all(line.get(name) is not None for name in needed)]
    speeds = [line["images_per_second"] for line in metrics if line.get("images_per_second") is not None]
    found = {"images seen": f"{metrics[-1]['images_seen']:,}"}
    if validations:
        newest, best = validations[-1], max(validations, key=lambda line: line["validation_psnr"])
        blurred = newest["validation_blurred_psnr"]
        found |= {
            "PSNR, newest": f"{newest['validation_psnr']:.2f} dB",
            "PSNR, best": f"{best['validation_psnr']:.2f} dB at {best['images_seen']:,} images",
            "PSNR, blurred input": f"{blurred:.2f} dB",
            "gain": f"{newest['validation_psnr'] - blurred:+.2f} dB",
        }
        if newest.get("validation_ssim") is not None:
            found["SSIM"] = f"{newest['validation_ssim']:.4f} ({newest['validation_blurred_ssim']:.4f} blurred)"
    if speeds:
        found["images/s, median"] = f"{np.median(speeds):.1f}"
    counts = {name: [line[name] for line in metrics if line.get(name) is not None] for name in _COUNTERS}
    found |= {name.replace("_", " "): f"{_increase(values):,}" for name, values in counts.items() if values}
    skipped = sum(line.get("nonfinite") or 0 for line in metrics)
    return found | {"non-finite updates": f"{skipped:.0f}"}


def _increase(values: Sequence[int]) -> int:
    """Total increase of a counter that restarts reset to 0."""
    return sum(now - before if now >= before else now for before, now in pairwise([0, *values]))


def differences(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Settings by name, each by run; for several runs only those that differ."""
    names = {setting: None for recipe in recipes.values() for setting in recipe}
    table = {name: {run: str(recipe.get(name, "")) for run, recipe in recipes.items()} for name in names}
    return {name: row for name, row in table.items() if len(recipes) == 1 or len(set(row.values())) > 1}


def title_of(runs: Mapping[str, RunData]) -> str:
    return " and ".join(runs)


def _samples(run: Run) -> dict[int, Strip]:
    """Samples evenly spaced over the run, each split into its three images."""
    keys = {
        int(Path(key).stem): key
        for key in run.store.list("samples/")
        if Path(key).stem.isdecimal() and key.endswith(".png")
    }
    seen = sorted(keys)
    chosen = {seen[nth] for nth in np.linspace(0, len(seen) - 1, min(_SAMPLES, len(seen))).round().astype(int)}
    strips = {nth: _strip(run, keys[nth]) for nth in sorted(chosen)}
    # Samples of another size are of another validation split, from before --allow-recipe-change.
    return {nth: strip for nth, strip in strips.items() if strip[0][1].shape == strips[seen[-1]][0][1].shape}


def _strip(run: Run, key: str) -> Strip:
    picture = pictures.decode(run.store.get(key), join(run.url, key))
    return list(zip(_LABELS, np.split(picture, 3, axis=1), strict=True))


def _figures(run: RunData) -> list[tuple[str, str, str]]:
    """Label, image and detail: blurred, restored at each sample of the run, sharp."""
    if not run.samples:
        return []
    (blurred, _, sharp) = run.newest
    restored = [(f"restored after {seen:,} images", strip[1][1]) for seen, strip in run.samples.items()]
    top, left, side = detail_of(sharp[1])
    return [
        (label, _inline(picture), _inline(picture[top : top + side, left : left + side]))
        for label, picture in (blurred, *restored, sharp)
    ]


def _inline(picture: np.ndarray) -> str:
    """An image as a data: URL, scaled down to the width of the page."""
    image, jpeg = PIL.Image.fromarray(picture), io.BytesIO()
    if image.width > _MAX_WIDTH:
        image = image.resize((_MAX_WIDTH, round(image.height * _MAX_WIDTH / image.width)), PIL.Image.Resampling.LANCZOS)
    image.save(jpeg, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"


def short_names(urls: Sequence[str]) -> list[str]:
    """The shortest unique suffix of each run's URL. Raises InputError on duplicates."""
    parts = [Run(url).url.rstrip("/").split("/") for url in urls]
    if len({tuple(part) for part in parts}) < len(parts):
        raise InputError(f"expected different runs, got one of them twice: {' '.join(urls)}")
    length = 1
    while len({tuple(part[-length:]) for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]
