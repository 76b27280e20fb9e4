"""Packs pictures into shards: python -m deblur.pack SOURCE --out FOLDER_OR_S3

SOURCE is a folder of pairs in one of the layouts of docs/data.md, a folder of sharp photographs, to which motion blur
is added, or `samples` for scikit-image's photographs. What was found is printed before any work; --check ends there.
Deterministic; an interrupted command can be run again.

  python -m deblur.pack s3://bucket/photographs --out s3://bucket/dataset --nodes 8

packs on a Ray cluster, with the same bytes as on one machine.
"""

import tyro

from cluster.errors import one_line_errors
from deblur.data.pack_settings import PackSettings


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(PackSettings, description=__doc__, prog="python -m deblur.pack")
        from deblur.data.packing import check, pack, summary  # after the flags: torch takes seconds

        print(check(settings) if settings.check else summary(pack(settings)))


if __name__ == "__main__":
    main()
