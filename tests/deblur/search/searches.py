"""Searches with made-up trials."""

from pathlib import Path
from typing import Any

from deblur.config import presets
from deblur.search.config import TuneSettings
from deblur.search.record import Search, State, Trial
from deblur.search.space import Space, space_of
from deblur.training.run import Origin

DEMO = presets.demo()
ORIGIN = Origin(dataset="dataset", features="features")


def search(folder: Path, *trials: Trial, space: Space | None = None, name: str = "s", **settings: Any) -> Search:
    """A search of the demo in `folder` with these trials added to the recorded ones."""
    defaults = {"search": name, "runs": str(folder), "recipe": DEMO, "grace_images": 100}
    made = Search(TuneSettings(**defaults | settings), space or space_of(DEMO, ["critic_updates=1:5"]), [], ORIGIN)
    made.trials += trials
    return made


def metrics(images_seen: int, psnr: float) -> dict[str, Any]:
    """What a trial reports."""
    scores = {"validation_psnr": psnr, "validation_ssim": psnr / 40, "validation_blurred_psnr": 24.0}
    return {"images_seen": images_seen, "images_per_second": 9.0, "ranks": 2, "threads_per_rank": 4, **scores}


def trial(number: int, state: State, *curve: float, reason: str = "", **values: Any) -> Trial:
    """A trial with these values of PSNR at 100, 200, ... images."""
    made = Trial(number=number, values=values or {"critic_updates": number + 1}, state=state, reason=reason)
    for nth, psnr in enumerate(curve, start=1):
        made.add(metrics(100 * nth, psnr))
    return made
