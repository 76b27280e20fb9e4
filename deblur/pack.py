"""Packs pictures into shards: python -m deblur.pack SOURCE --out FOLDER_OR_S3

SOURCE is a GOPRO tree, a folder with A/ (blurred) and B/ (sharp), a folder of sharp photographs, which are blurred
here, or the word samples for the photographs that come with scikit-image. Stopped at any moment, the same command
starts again and leaves the same bytes.
"""

import sys

import tyro

from cluster.errors import one_line_errors
from deblur.data.packing import PackSettings, pack, summary


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(PackSettings, description=__doc__, prog="python -m deblur.pack", args=sys.argv[1:])
        print(summary(pack(settings)))


if __name__ == "__main__":
    main()
