"""Whether a detector sees again what it saw in the sharp picture: the judge of DeblurGAN's section on detection.

Its boxes on the sharp picture are the truth, so no labels are needed (arXiv:1711.07064 asks YOLO; a detector here is
scikit-image's cascade of frontal faces, which needs no weights, or one of torchvision's).
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
import skimage.data
import torch
from skimage.feature import Cascade

from deblur.models.weights import read_weights, refuse_other_tensors

# Those that are the same network whether torchvision fetches the weights or we load them: its older ResNet detectors
# get another epsilon in their norm layers when they are made without.
DetectorName = Literal["fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2", "ssdlite320_mobilenet_v3_large"]
MIN_IOU = 0.5
MIN_SCORE = 0.5
# Of scikit-image's example; smaller windows find faces in every texture.
_SMALLEST_FACE = 60
_FACE_STEP = 1.2


@dataclass(frozen=True)
class Detections:
    """What a detector found in one picture, the surest first where it gives scores.

    boxes   [N, 4]  left, top, right, bottom in pixels
    labels  [N]     the detector's own classes, int
    """

    boxes: np.ndarray
    labels: np.ndarray


class Detector(Protocol):
    name: str

    def __call__(self, picture: np.ndarray) -> Detections:
        """What is found in a picture, uint8 RGB [H, W, 3]."""


class FaceCascade:
    """scikit-image's cascade of local binary patterns for frontal faces."""

    name = f"scikit-image's cascade of frontal faces, {_SMALLEST_FACE} pixels or larger"

    def __init__(self) -> None:
        self._cascade = Cascade(skimage.data.lbp_frontal_face_cascade_filename())

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
    """One of torchvision's detectors with the weights of a state dict; detections of a score of at least 0.5."""

    def __init__(self, network: DetectorName, source: str, device: torch.device | str = "cpu") -> None:
        """Raises InputError naming the source, and the first tensor that is not the network's.

        source  file or s3:// URL, with all of the network's tensors
        """
        from torchvision.models import get_model  # not at the top: it takes a second

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
    """Detections in one or more pictures, counted against those in the sharp ones. A rate of nothing is nan."""

    true_positives: int = 0
    false_positives: int = 0
    misses: int = 0

    def __add__(self, other: "Matches") -> "Matches":
        return Matches(*(mine + its for mine, its in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def precision(self) -> float:
        """Share of what was detected that is in the sharp pictures, too; nan where nothing was."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of what is in the sharp pictures that was detected; nan where there is nothing."""
        return _share(self.true_positives, self.true_positives + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two, 0 where nothing matched; nan where nothing was detected anywhere."""
        return _share(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.misses)


def definition(detector: Detector) -> str:
    """What the rates are of, for those who read the numbers."""
    return (
        f"Detection by {detector.name}: its boxes in the sharp picture are the truth; one of the same class at IoU "
        f"{MIN_IOU} or more is a true positive, one to one, best score first; counts of all pictures together; "
        "- where there is nothing to count"
    )


def match(found: Detections, truth: Detections) -> Matches:
    """Counts detections against the truth: each takes, in its turn, the free box of its class that it overlaps most.

    That is COCO's way; what is seen twice is one true and one false positive.
    """
    overlap = iou(found.boxes, truth.boxes) * (found.labels[:, None] == truth.labels)
    matched = 0
    for row in overlap:
        if row.size and row.max() >= MIN_IOU:
            overlap[:, row.argmax()] = 0  # it is taken
            matched += 1
    return Matches(matched, len(found.boxes) - matched, len(truth.boxes) - matched)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each box [N, 4] with each of the others [M, 4]: [N, M], in [0, 1].

    Boxes are left, top, right, bottom. 0 where both are empty.
    """
    boxes, others = boxes[:, None].astype(float), others[None].astype(float)
    overlap = np.minimum(boxes, others)[..., 2:] - np.maximum(boxes, others)[..., :2]
    intersection = overlap.clip(min=0).prod(axis=-1)
    area, other_area = ((side[..., 2:] - side[..., :2]).prod(axis=-1) for side in (boxes, others))
    union = area + other_area - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
