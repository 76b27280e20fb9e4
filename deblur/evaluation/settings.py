"""Settings of an evaluation. Torch-free: flags are parsed before torch is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cluster.errors import InputError
from deblur.models.names import EMBEDDED

DetectorName = Literal["fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2", "ssdlite320_mobilenet_v3_large"]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    model: str = EMBEDDED
    """A run (folder or s3:// URL), which gives its best checkpoint, one of its checkpoints/N folders, or a
    generator.safetensors; default: the model inside this package."""
    data: str | None = None
    """Root of a packed dataset, folder or s3:// URL [env DEBLUR_DATA]."""
    blurred: str | None = None
    """Folder or s3://bucket/prefix of blurred pictures, instead of a dataset."""
    sharp: str | None = None
    """Folder or s3://bucket/prefix of sharp pictures with the same names."""
    split: str = "test"
    """Split of the dataset."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto: a GPU if available."""
    limit: int | None = None
    """Maximum number of pictures; the first ones."""
    json: Path | None = None
    """File for the results as JSON."""
    lpips: bool = False
    """Also measure LPIPS; needs pip install -e '.[lpips]'."""
    lpips_weights: str | None = None
    """State dict of torchvision's alexnet, file or s3:// URL; default: torchvision's ImageNet weights."""
    detect: bool = False
    """Also measure how many of a detector's objects in the sharp pictures it finds in the others."""
    detector: DetectorName | None = None
    """A detector of torchvision; default: scikit-image's cascade of frontal faces."""
    detector_weights: str | None = None
    """State dict of the detector, file or s3:// URL."""

    def __post_init__(self) -> None:
        if (self.blurred is None) != (self.sharp is None):
            raise InputError("--blurred and --sharp are a pair of folders; give both, or --data")
        if self.blurred is not None and self.data is not None:
            raise InputError("--data and --blurred/--sharp exclude each other; give one of them")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; it must be at least 1")
        if self.lpips_weights and not self.lpips:
            raise InputError("--lpips-weights has no effect without --lpips; add it")
        if (self.detector or self.detector_weights) and not self.detect:
            raise InputError("--detector and --detector-weights have no effect without --detect; add it")
        if self.detector and not self.detector_weights:
            raise InputError(
                f"--detector {self.detector} needs weights: add --detector-weights FILE or s3:// URL of a state dict "
                "with torchvision's names, or remove both for faces, which need none"
            )
        if self.detector_weights and not self.detector:
            names = ", ".join(get_args(DetectorName))
            raise InputError(f"--detector-weights needs its network; add --detector, one of {names}")
