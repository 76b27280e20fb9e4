"""Evaluates a generator: python -m deblur.evaluate [--model runs/RUN] [--data ROOT | --blurred DIR --sharp DIR]

Prints PSNR and SSIM of every restored picture on full frames, then a table of all metrics, beside those of the blurred
pictures: the baseline of a generator that changes nothing. The metrics' definitions are printed with the numbers.

--lpips     also LPIPS, with torchvision's ImageNet AlexNet, or --lpips-weights FILE_OR_S3
--detect    also how many of a detector's objects in the sharp pictures it finds in the others: scikit-image's faces, or
            --detector fasterrcnn_resnet50_fpn_v2 --detector-weights FILE_OR_S3 (torchvision's)
"""

import logging

import tyro

from cluster.errors import one_line_errors
from deblur.evaluation.settings import EvaluateSettings


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_line_errors():
        settings = tyro.cli(EvaluateSettings, description=__doc__, prog="python -m deblur.evaluate")
        from deblur.evaluation.measure import measure  # after the flags: torch takes seconds

        print(measure(settings))


if __name__ == "__main__":
    main()
