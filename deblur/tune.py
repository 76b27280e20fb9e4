"""Searches for loss weights, critic counts and learning rates: python -m deblur.tune --trials 20 --images 200000

Every trial is a training like deblur.train's, compared by PSNR on the validation split and stopped early if it lags
behind. The recipe's own values are tried first. The same command resumes the search; trials that ended are not
repeated. A flag of the recipe (--critic-updates 3) fixes that field; --space narrows or adds one.
"""

import re
import sys
from collections.abc import Sequence

from cluster.errors import one_line_errors
from deblur.config import cli
from deblur.search.config import TuneSettings


def parse(arguments: Sequence[str]) -> tuple[TuneSettings, list[str]]:
    """The settings, and the names of the flags that were given."""
    given = [match[1].replace("-", "_") for argument in arguments if (match := re.match("--([^=]+)", argument))]
    return cli.parse(TuneSettings, arguments, "python -m deblur.tune", str(__doc__)), given


def main() -> None:
    with one_line_errors():
        settings, given = parse(sys.argv[1:])
        from deblur.search.driver import run_search  # after the flags: torch takes seconds

        sys.exit(run_search(settings, given))


if __name__ == "__main__":
    main()
