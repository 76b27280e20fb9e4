"""Trains a deblurring GAN: python -m deblur.train --recipe paper --nodes 4

With nothing set it packs the sample photographs and trains on them, on this machine, into runs/. The same command again
resumes where it stopped.
"""

import sys
from collections.abc import Sequence

from cluster.errors import one_line_errors
from deblur.config import cli
from deblur.training.settings import TrainSettings


def parse(arguments: Sequence[str]) -> TrainSettings:
    """TrainSettings from flags."""
    return cli.parse(TrainSettings, arguments, "python -m deblur.train", str(__doc__))


def main() -> None:
    with one_line_errors():
        settings = parse(sys.argv[1:])
        from deblur.training.job import train  # after the flags: torch takes seconds

        train(settings)


if __name__ == "__main__":
    main()
