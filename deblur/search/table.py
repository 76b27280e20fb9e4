"""The table of a search's trials, for the terminal and for the report."""

import shutil
import sys
import time
from collections.abc import Iterable

from deblur.search.record import Search, Trial

TABLE_S = 60.0  # between two tables in a log file while no trial ends


def table(search: Search) -> str:
    """All trials, best first, then those without a score; one line each."""
    *columns, reasons = zip(*rows(search), strict=True)
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, reasons, strict=True))


def rows(search: Search) -> list[list[str]]:
    """The cells of that table; the first row has the titles."""
    ranked = search.ranked()
    names = sorted({name for trial in search.trials for name in trial.values})
    cells = [["trial", "state", "images", "PSNR", "SSIM", "images/s", *names, ""]]
    for trial in [*ranked, *(trial for trial in search.trials if trial not in ranked)]:
        numbers = [(trial.score("psnr"), ".3f"), (trial.score("ssim"), ".4f"), (trial.images_per_second, ".1f")]
        values = [trial.values.get(name, "") for name in names]
        row = [search.name_of(trial), trial.state, f"{trial.images_seen:,}"]
        row += ["-" if number is None else format(number, form) for number, form in numbers]
        row += [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        cells.append([*row, trial.reason])
    return cells


def counts(trials: Iterable[Trial]) -> str:
    """How many trials are in each state: "3 finished, 1 stopped, 2 running"."""
    states = [trial.state for trial in trials]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none yet"


class LiveTable:
    """Prints events and the table: redrawn in place on a terminal, at most once a minute in a log file."""

    def __init__(self) -> None:
        self._lines, self._at, self._terminal = 0, 0.0, sys.stdout.isatty()

    def event(self, text: str) -> None:
        """Prints a line that stays."""
        print(text, flush=True)
        self._lines = 0

    def show(self, search: Search, force: bool = False) -> None:
        """Prints the table; `force` does so in a log file, too."""
        now = time.monotonic()
        if not (force or self._terminal or now - self._at >= TABLE_S):
            return
        lines = [f"{search.name}: {counts(search.trials)}", *table(search).splitlines()]
        if self._terminal:
            width = shutil.get_terminal_size().columns
            lines = [line[:width] for line in lines]
            if self._lines:
                print(f"\x1b[{self._lines}F\x1b[J", end="")
        print("\n".join(lines), flush=True)
        self._lines, self._at = len(lines), now
