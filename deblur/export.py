"""Writes a trained generator as one file: python -m deblur.export [runs/RUN] --out FILE

model.safetensors   the weights in bfloat16, half of their size, and the recipe: a --model of deblur.restore,
                    deblur.evaluate and deblur.serve, and an --init-from of deblur.train
model.onnx          for onnxruntime and others: "blurred" [B, 3, H, W], RGB in [-1, 1], any sizes, becomes "restored"

An ONNX file is compared with the generator before it is written; it needs pip install -e '.[onnx]'
"""

from dataclasses import dataclass

import tyro

from cluster.errors import one_line_errors
from deblur.models.names import EMBEDDED


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: tyro.conf.Positional[str] = EMBEDDED
    """A run (folder or s3:// URL), one of its checkpoints/N folders, or a generator.safetensors; default: the model
    inside this package."""
    out: str
    """File or s3:// URL to write; its ending chooses the format."""
    opset: int = 20
    """Version of ONNX's operators."""


def main() -> None:
    with one_line_errors():
        settings = tyro.cli(Settings, description=__doc__, prog="python -m deblur.export")
        from deblur.models.exported import export  # after the flags: torch takes seconds

        print(export(settings.model, settings.out, settings.opset))


if __name__ == "__main__":
    main()
