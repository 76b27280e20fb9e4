"""Writes a trained generator as one small file: python -m deblur.export runs/RUN --out model.safetensors

The file has the weights in bfloat16, half of their size, and the recipe; it is a --model of deblur.restore,
deblur.evaluate and deblur.serve, and an --init-from of deblur.train.
"""

from dataclasses import dataclass

import tyro

from cluster.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: tyro.conf.Positional[str]
    """A run (folder or s3:// URL), one of its checkpoints/N folders, or a generator.safetensors."""
    out: str
    """File or s3:// URL to write, ending in .safetensors."""


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.export")
        from deblur.models.trained import export  # after the flags: torch takes seconds

        print(export(settings.model, settings.out))


if __name__ == "__main__":
    main()
