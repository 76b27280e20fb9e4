"""Packs pictures into shards: python -m deblur.pack SOURCE --out FOLDER_OR_S3

SOURCE is a GOPRO tree, a folder with A/ (blurred) and B/ (sharp), a folder of sharp photographs, to which motion blur
is added, or `samples` for scikit-image's photographs. Deterministic; an interrupted command can be run again.
"""

import tyro

from cluster.errors import one_line_errors
from deblur.data.packing import PackSettings, pack, summary


def main() -> None:
    with one_line_errors():
        print(summary(pack(tyro.cli(PackSettings, description=__doc__, prog="python -m deblur.pack"))))


if __name__ == "__main__":
    main()
