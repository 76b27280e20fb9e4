"""Training time lost to a checkpoint: uploaded in the background, uploaded synchronously, and no checkpoint.

python -m benchmarks.checkpoint --json                     into a folder
python -m benchmarks.checkpoint --json --store s3://B/P    into a bucket

The three modes alternate in one process, so that drift of the machine affects all. Networks and optimiser states have
the full size of the recipe; pictures are small, so pauses are larger relative to an update, but not in seconds.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.command import option, run
from benchmarks.timing import pick_device
from benchmarks.update import batch_of, updater_of
from cluster.storage import Store, join, open_store
from cluster.storage.checkpoints import Checkpoints
from deblur.config import presets
from deblur.config.recipes import Recipe
from deblur.training.state import checkpoint_parts
from deblur.training.update import Updater

MODES = ("none", "beside", "waiting")


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = option("paper", "Preset whose networks are saved.")
    crop: int = option(64, "Side of the pictures.")
    updates: int = option(12, "Updates per round, with one checkpoint after the first.")
    rounds: int = option(5, "Rounds per mode.")
    store: str | None = option(None, "Folder or s3://bucket/prefix for the checkpoints; default: a temporary folder.")
    mb_per_s: float | None = option(
        None, "Bandwidth limit of the store, as of a bucket behind a network; a local server would use these cores."
    )
    json: bool = option(False, "Print one line of JSON at the end.")


class ThrottledStore:
    """A store with limited upload bandwidth."""

    def __init__(self, store: Store, mb_per_s: float) -> None:
        self._store, self._bytes_per_s = store, mb_per_s * 1e6

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes) -> None:
        time.sleep(len(data) / self._bytes_per_s)
        self._store.put(key, data)


@dataclass(frozen=True)
class Turn:
    """One round of one mode, in seconds."""

    total_s: float
    pack_s: float
    """Serializing the state, for which training always waits."""
    upload_s: float


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(settings, open_store(join(settings.store or folder, "benchmark")))


def _measure(settings: Settings, store: Store) -> dict[str, Any]:
    recipe = _recipe(settings)
    updater = updater_of(recipe, pick_device())
    checkpoints = Checkpoints(ThrottledStore(store, settings.mb_per_s) if settings.mb_per_s else store, keep=1)
    _turn("beside", updater, recipe, checkpoints, 2, 0)  # warms up
    turns: dict[str, list[Turn]] = {mode: [] for mode in MODES}
    for nth in range(settings.rounds):
        for mode in MODES:
            turns[mode].append(_turn(mode, updater, recipe, checkpoints, settings.updates, nth + 1))
    total = {mode: statistics.median(turn.total_s for turn in turns[mode]) for mode in MODES}
    saved = turns["beside"] + turns["waiting"]
    return {
        "size_bytes": sum(part.bytes for part in checkpoints.list()[-1].files.values()),
        "seconds_of_updates": round(total["none"], 3),
        "seconds_per_update": round(total["none"] / settings.updates, 3),
        "seconds_held_up_beside": round(total["beside"] - total["none"], 3),
        "seconds_held_up_waiting": round(total["waiting"] - total["none"], 3),
        "beside_to_waiting": round((total["beside"] - total["none"]) / (total["waiting"] - total["none"]), 3),
        "beside_to_update": round((total["beside"] - total["none"]) / (total["none"] / settings.updates), 3),
        "seconds_to_pack": round(statistics.median(turn.pack_s for turn in saved), 3),
        "seconds_to_upload_beside": round(statistics.median(turn.upload_s for turn in turns["beside"]), 3),
        "seconds_to_upload_waiting": round(statistics.median(turn.upload_s for turn in turns["waiting"]), 3),
        "total_s_of_each_turn": {mode: [round(turn.total_s, 3) for turn in turns[mode]] for mode in MODES},
    }


def _turn(mode: str, updater: Updater, recipe: Recipe, checkpoints: Checkpoints, updates: int, nth: int) -> Turn:
    blurred, sharp, mixes = batch_of(recipe, next(updater.generator.parameters()).device)
    start, pack_s = time.monotonic(), 0.0
    for update in range(updates):
        updater.update(blurred, sharp, mixes).cpu()  # waits for the device: each update ends before the next
        if update == 0 and mode != "none":
            packing = time.monotonic()
            parts = checkpoint_parts(updater, recipe, nth)
            pack_s = time.monotonic() - packing
            checkpoints.save(nth, parts)
            if mode == "waiting":
                checkpoints.wait()
    total_s = time.monotonic() - start
    checkpoints.wait()
    return Turn(total_s, pack_s, checkpoints.uploads.seconds)


def _recipe(settings: Settings) -> Recipe:
    recipe = presets.PRESETS[settings.recipe]()
    return replace(recipe, data=replace(recipe.data, batch_size=1, crop=settings.crop))


if __name__ == "__main__":
    run("checkpoint", __doc__, Settings, measure)
