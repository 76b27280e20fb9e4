"""Settings of packing, the flags of python -m deblur.pack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from cluster.errors import InputError
from deblur.data.layouts import GoproBlur, Layout

SAMPLES = "samples"
SAMPLE_CUT, SAMPLE_STEP = 256, 192  # the paper's crop size: small, so that the demo spends little time on decoding
BlurModel = Literal["paper", "camera"]


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    source: tyro.conf.Positional[str] = ""
    """Folder, s3://bucket/prefix, zip or tar of pictures, or `samples` for scikit-image's photographs."""
    out: str = ""
    """Root of the dataset, a folder or s3://bucket/prefix."""
    layout: Layout = "auto"
    """How pictures are arranged: found by their names (docs/data.md); combined: blurred and sharp side by side in one
    picture, as pix2pix has them; photographs: all are sharp, and blur is added."""
    blurred: str | None = None
    """Folder, s3://bucket/prefix, zip or tar of blurred pictures, instead of SOURCE."""
    sharp: str | None = None
    """Folder of their sharp counterparts, with the same names."""
    pairs: Path | None = None
    """CSV or TSV file with the columns blurred, sharp, and perhaps split and scene, instead of SOURCE."""
    blur: GoproBlur | None = None
    """Blurred pictures of GOPRO: blur averages stored values, blur_gamma linear light. Required for GOPRO."""
    first_frame: bool = False
    """Take GIFs, and of every animated picture the first frame."""
    blur_model: BlurModel = "paper"
    """Blur added to photographs: DeblurGAN's one kernel per picture, or camera: shake, motion, saturation and noise."""
    blurs_per_photo: int = 1
    """Pairs made of each photograph, each with its own blur."""
    validation_scenes: int = 2
    """Scenes moved from train to validation; 0, as in the paper, for no validation."""
    cut: int | None = None
    """Cut training pictures into squares of this side in pixels, so that less is decoded per crop."""
    step: int | None = None
    """Pixels from one square to the next; default: half of --cut."""
    shard_mb: int = 128
    """Size of a shard in MB (1,000,000 bytes)."""
    seed: int = 0
    """Seed of the sample order, the validation scenes and the blur of photographs."""
    overwrite: bool = False
    """Replace an existing dataset, once the new one is complete."""
    max_bad_share: float = 0.0
    """Share of pairs that may be left out because they do not decode."""
    nodes: int | None = None
    """Nodes of a Ray cluster to use; SOURCE and --out must be accessible from all. Default: this process."""
    wait_s: float = 600.0
    """Seconds to wait for missing nodes."""
    check: bool = False
    """Look for pictures, and compare the sides of some pairs, without writing anything."""

    def __post_init__(self) -> None:
        given = [bool(self.source), self.blurred is not None or self.sharp is not None, self.pairs is not None]
        if sum(given) != 1 or (self.blurred is None) != (self.sharp is None):
            raise InputError("give one of SOURCE, --blurred DIR with --sharp DIR, and --pairs FILE")
        if self.layout != "auto" and not self.source:
            raise InputError(f"--layout {self.layout} is for SOURCE; remove it")
        if not self.out and not self.check:
            raise InputError("--out is missing: the root of the dataset, a folder or s3://bucket/prefix")
        if not 0 <= self.max_bad_share < 1:
            raise InputError(f"--max-bad-share is {self.max_bad_share}; expected a fraction in [0, 1)")
        if self.nodes is not None and self.source == SAMPLES:
            raise InputError("samples: are packed in this process; remove --nodes")
        for name in ("cut", "step", "shard_mb", "blurs_per_photo", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        for name in ("validation_scenes", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 0")
        if self.step is not None and (self.cut is None or self.step > self.cut):
            raise InputError(f"--step {self.step} needs a --cut of at least that, so that squares leave no gaps")

    @property
    def named(self) -> str:
        """Where the pictures are from, for messages."""
        return self.source or str(self.pairs or f"{self.blurred} and {self.sharp}")

    @property
    def squares(self) -> tuple[int, int] | None:
        """(side, step) of the squares into which training pictures are cut."""
        if self.source == SAMPLES:
            return SAMPLE_CUT, SAMPLE_STEP
        return (self.cut, self.step or -(-self.cut // 2)) if self.cut else None

    @property
    def adds_other_blur(self) -> bool:
        """Whether photographs get another blur than the default, one of the paper's per photograph."""
        return (self.blur_model, self.blurs_per_photo) != ("paper", 1)
