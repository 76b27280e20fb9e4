"""Restores photographs: python -m deblur.restore IN... --out DIR [--model runs/RUN]

Files, folders and buckets, of any size; sub-folders and names are kept. The output has the EXIF orientation applied, is
grey if the input is grey, and keeps alpha, colour profile, and date, camera, place and author (--strip drops these).
16-bit pictures become 8-bit, CMYK and palettes become RGB.

  python -m deblur.restore s3://bucket/in --out s3://bucket/out --model s3://bucket/runs/RUN --nodes 4

runs on a Ray cluster. The same command resumes: photographs that exist in --out are not restored again.
"""

import logging
import sys

import tyro

from cluster.errors import one_line_errors
from deblur.inference.settings import RestoreSettings


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_line_errors():
        settings = tyro.cli(RestoreSettings, description=__doc__, prog="python -m deblur.restore")
        from deblur.inference.bulk import restore_photographs  # after the flags: torch takes seconds

        failures = restore_photographs(settings)
    if failures:
        print("\n".join(["not restored:", *failures]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
