"""Object detection as a metric, after DeblurGAN's section on detection: does a detector find the same objects?

The detector's boxes in the sharp picture are the ground truth, so no labels are needed. arXiv:1711.07064 uses YOLO;
here it is scikit-image's cascade of frontal faces, which needs no weights, or a detector of torchvision.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import skimage.data
import torch
from skimage.feature import Cascade

from deblur.evaluation.settings import DetectorName
from deblur.models.weights import read_weights, refuse_other_tensors

# Without torchvision's older ResNet detectors: built without weights, their norm layers have another epsilon.
MIN_IOU = 0.5
MIN_SCORE = 0.5
# From scikit-image's example; smaller windows find faces in every texture.
_SMALLEST_FACE = 60
_FACE_STEP = 1.2


@dataclass(frozen=True)
class Detections:
    """A detector's results in one picture, highest score first if it has scores.

    boxes   [N, 4]  left, top, right, bottom in pixels
    labels  [N]     the detector's classes, int
    """

    boxes: np.ndarray
    labels: np.ndarray


class Detector(Protocol):
    name: str

    def __call__(self, picture: np.ndarray) -> Detections:
        """Detects objects in a picture, uint8 RGB [H, W, 3]."""


class FaceCascade:
    """scikit-image's cascade of local binary patterns for frontal faces."""

    name = f"scikit-image's cascade of frontal faces, {_SMALLEST_FACE} pixels or larger"

    def __init__(self) -> None:
        filename: Any = skimage.data.lbp_frontal_face_cascade_filename
        self._cascade = Cascade(filename())

    def __call__(self, picture: np.ndarray) -> Detections:
        side = min(picture.shape[:2])
        found = self._cascade.detect_multi_scale(
            img=picture,
            scale_factor=_FACE_STEP,
            step_ratio=1,
            min_size=(_SMALLEST_FACE, _SMALLEST_FACE),
            max_size=(side, side),
        )
        boxes = [(face["c"], face["r"], face["c"] + face["width"], face["r"] + face["height"]) for face in found]
        return Detections(np.array(boxes, dtype=float).reshape(-1, 4), np.zeros(len(boxes), dtype=int))


class NetworkDetector:
    """A torchvision detector with the weights of a state dict; keeps detections with a score of at least 0.5."""

    def __init__(self, network: DetectorName, source: str, device: torch.device | str = "cpu") -> None:
        """Raises InputError naming the source, and the first tensor that does not match the network.

        source  file or s3:// URL with all tensors of the network
        """
        from torchvision.models import get_model  # not at the top: importing torchvision takes a second

        hint = (
            f"--detector-weights takes the state dict of torchvision's {network}, as .safetensors or from "
            "torch.save(net.state_dict())"
        )
        state = read_weights(source, hint)
        self._network = get_model(network, weights=None, weights_backbone=None)
        refuse_other_tensors(self._network.state_dict(), state, source, hint)
        self._network.load_state_dict(state)
        self._network.to(device).eval()
        self._device = device
        self.name = f"torchvision's {network} with the weights of {source}, scores of at least {MIN_SCORE}"

    @torch.inference_mode()
    def __call__(self, picture: np.ndarray) -> Detections:
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).to(self._device) / 255
        (found,) = self._network([pixels])
        boxes, labels, scores = (found[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
        kept = [index for index in np.argsort(-scores, kind="stable") if scores[index] >= MIN_SCORE]
        return Detections(boxes[kept], labels[kept])


@dataclass(frozen=True)
class Matches:
    """Counts of detections in one or more pictures, compared with the sharp pictures. Rates of nothing are nan."""

    true_positives: int = 0
    false_positives: int = 0
    misses: int = 0

    def __add__(self, other: "Matches") -> "Matches":
        return Matches(*(mine + its for mine, its in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def precision(self) -> float:
        """Fraction of detections that are in the sharp pictures, too; nan without detections."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Fraction of the sharp pictures' objects that were detected; nan without objects."""
        return _ratio(self.true_positives, self.true_positives + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of both, 0 without matches; nan without any detections."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.misses)


def definition(detector: Detector) -> str:
    """How the rates are defined, to be printed with them."""
    return (
        f"Detection by {detector.name}: its boxes in the sharp picture are the ground truth; a box of the same class "
        f"with IoU of at least {MIN_IOU} is a true positive, one to one, highest score first; counts are summed over "
        "pictures; - means nothing to count"
    )


def match(found: Detections, truth: Detections) -> Matches:
    """Matches detections with the ground truth: each, in order, takes the unmatched box of its class with maximum IoU.

    As in COCO's evaluation; a second detection of an object is a false positive.
    """
    from torchvision.ops import box_iou  # not at the top: importing torchvision takes a second

    boxes, others = (torch.from_numpy(side.boxes).double() for side in (found, truth))
    overlap = box_iou(boxes, others).nan_to_num().numpy()  # nan for two boxes without area
    overlap *= found.labels[:, None] == truth.labels
    matched = 0
    for row in overlap:
        if row.size and row.max() >= MIN_IOU:
            overlap[:, row.argmax()] = 0  # matched
            matched += 1
    return Matches(matched, len(found.boxes) - matched, len(truth.boxes) - matched)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
