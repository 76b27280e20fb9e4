"""Searches for loss weights, critic counts and learning rates: python -m deblur.tune --trials 20 --images 200000

Every trial is a training like deblur.train's, judged by PSNR on the validation split and ended early where it lags
behind. The recipe's own values are tried first. The same command again goes on; trials that have ended are not made
again. A flag of the recipe (--critic-updates 3) fixes that field, --space narrows or adds one.
"""

import re
import sys
from collections.abc import Sequence

from cluster.errors import one_line_errors
from cluster.storage import join
from deblur.config import cli
from deblur.search.driver import TuneSettings, is_done, prepare, tune


def parse(arguments: Sequence[str]) -> tuple[TuneSettings, list[str]]:
    """TuneSettings from flags, and the names of the flags that were given."""
    given = [match[1].replace("-", "_") for argument in arguments if (match := re.match("--([^=]+)", argument))]
    return cli.parse(TuneSettings, arguments, "python -m deblur.tune", str(__doc__)), given


def main() -> None:
    with one_line_errors():
        plan = prepare(*parse(sys.argv[1:]))
        found = tune(plan)
        if not plan.settings.check and not is_done(found, plan.settings):
            sys.exit(f"{found.url}: interrupted; the same command goes on")
        if best := found.best():
            print(f"best     {found.name_of(best)}: {best.values}")
            print(f"         python -m deblur.train --recipe {join(found.url, 'best.json')}")
            print(f"         {join(found.url, 'report.html')}")


if __name__ == "__main__":
    main()
