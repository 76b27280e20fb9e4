"""Settings of bulk restoration. Torch-free: flags are parsed before torch is imported."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from cluster.errors import InputError
from deblur.models.names import EMBEDDED


@dataclass(frozen=True, kw_only=True)
class RestoreSettings:
    inputs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IN...")]]
    """Photographs, folders, and s3://bucket/prefix URLs."""
    out: str
    """Folder or s3://bucket/prefix for the restored photographs; for a single one perhaps its file."""
    model: str = EMBEDDED
    """A run (folder or s3:// URL), which gives its best checkpoint, one of its checkpoints/N folders, or a
    generator.safetensors; default: the model inside this package."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: a GPU if available."""
    tile: int = 0
    """Side of tiles in pixels; 0 uses tiles only if a photograph is large or GPU memory is short."""
    max_megapixels: float = 256
    """Largest photograph that is decoded; each megapixel takes about 15 MB of memory."""
    strip: bool = False
    """Leave out when, where and with what a photograph was taken (EXIF)."""
    first_frame: bool = False
    """Take GIFs, and of every animated picture the first frame."""
    overwrite: bool = False
    """Replace photographs that exist in --out."""
    nodes: int | None = None
    """Nodes of a Ray cluster to use, with all their GPUs; default: this process."""
    wait_s: float = 600.0
    """Seconds to wait for missing nodes."""

    def __post_init__(self) -> None:
        if self.max_megapixels <= 0:
            raise InputError(f"--max-megapixels is {self.max_megapixels}; it must be greater than 0")
        if self.nodes is not None and self.nodes < 1:
            raise InputError(f"--nodes is {self.nodes}; it must be at least 1")
