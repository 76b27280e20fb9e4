"""Restores photographs: python -m deblur.restore IN... --out DIR --model runs/RUN

Files, folders and buckets, of any size; sub-folders and names are kept. The output is upright (EXIF orientation
applied), grey where the input is grey, and keeps alpha and colour profile; other metadata is left out. Pictures of 16
bits become 8, CMYK and palettes become RGB.

  python -m deblur.restore s3://bucket/in --out s3://bucket/out --model s3://bucket/runs/RUN --nodes 4

spreads them over a Ray cluster. The same command again goes on: photographs that are there are not restored again.
"""

import logging
import sys
from dataclasses import replace

import torch
import tyro
from tqdm.contrib.logging import logging_redirect_tqdm

from cluster.errors import one_line_errors
from cluster.storage import absolute, open_store
from deblur.inference.bulk import RestoreSettings, left_to_do, plan, restore
from deblur.inference.generator import build_model, read_model


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(RestoreSettings, description=__doc__, prog="python -m deblur.restore")
        settings = replace(settings, out=absolute(settings.out))
        photos = plan(settings.inputs, settings.out)
        model = read_model(settings.model)
        build_model(model, settings.model, torch.device("cpu"))  # refused here, before any node is bothered
        left = left_to_do(photos, open_store(settings.out), model, settings)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        with logging_redirect_tqdm():
            failures = restore(left, model, settings) if left else []
    there = f", {len(photos) - len(left)} were there" if len(left) < len(photos) else ""
    print(f"{len(left) - len(failures)} of {len(photos)} photographs restored into {settings.out}{there}")
    if failures:
        print("\n".join(["not restored:", *failures]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
