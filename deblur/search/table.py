"""A search as a table of its trials, for the terminal and the page."""

import shutil
import sys
import time
from collections.abc import Iterable, Sequence

from deblur.search.record import Search, Trial

TABLE_S = 60.0  # between tables in a log while nothing ends


def table(search: Search) -> str:
    """All trials for people, best first, then those without a score; one line each."""
    return "\n".join(_aligned(cells(search)))


def cells(search: Search) -> list[list[str]]:
    """The rows of that table as texts, first the titles."""
    ranked = search.ranked()
    rest = [trial for trial in search.trials if trial not in ranked]
    names = sorted({name for trial in search.trials for name in trial.values})
    rows = [["trial", "state", "images", "PSNR", "SSIM", "images/s", *names, ""]]
    for trial in [*ranked, *rest]:
        values = [trial.values.get(name, "") for name in names]
        rows.append(
            [
                search.name_of(trial),
                trial.state,
                f"{trial.images_seen:,}",
                _number(trial.score("psnr"), ".3f"),
                _number(trial.score("ssim"), ".4f"),
                _number(trial.images_per_second, ".1f"),
                *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values),
                trial.reason,
            ]
        )
    return rows


def counts(trials: Iterable[Trial]) -> str:
    """How many trials are in which state: "3 finished, 1 stopped, 2 running"."""
    states = [trial.state for trial in trials]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none yet"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.rjust, row[:-1], widths), row[-1]]).rstrip() for row in rows]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


class Shown:
    """What the terminal shows. The table is drawn anew in its place on a terminal, and once a minute in a log."""

    def __init__(self) -> None:
        self._lines, self._at, self._terminal = 0, 0.0, sys.stdout.isatty()

    def now(self, text: str) -> None:
        """Shows an event."""
        print(text, flush=True)
        self._lines = 0

    def table(self, found: Search, at_once: bool = False) -> None:
        """Shows all trials."""
        now = time.monotonic()
        if not (at_once or self._terminal or now - self._at >= TABLE_S):
            return
        lines = [f"{found.name}: {counts(found.trials)}", *table(found).splitlines()]
        if self._terminal:
            width = shutil.get_terminal_size().columns
            lines = [line[:width] for line in lines]
            if self._lines:
                print(f"\x1b[{self._lines}F\x1b[J", end="")
        print("\n".join(lines), flush=True)
        self._lines, self._at = len(lines), now
