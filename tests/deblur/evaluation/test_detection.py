"""Matching against brute force over all assignments, networks against torchvision's, the face of the sample set."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from deblur.data.sample_set import blurred_photographs
from deblur.evaluation.detection import Detections, FaceCascade, Matches, NetworkDetector, definition, match

SMALL = "ssdlite320_mobilenet_v3_large"

corners = st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 8)] * 2)
boxes = st.lists(corners, max_size=4).map(
    lambda found: np.array([(x, y, x + width, y + height) for x, y, width, height in found], float).reshape(-1, 4)
)


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    found = draw(boxes)
    labels = draw(st.lists(st.integers(1, 2), min_size=len(found), max_size=len(found)))
    return Detections(found, np.array(labels, dtype=int))


def of(*found: tuple[float, float, float, float], labels: list[int] | None = None) -> Detections:
    return Detections(np.array(found, float).reshape(-1, 4), np.array(labels or [0] * len(found), dtype=int))


def test_boxes_without_an_area_match_nothing() -> None:
    assert match(of((3, 3, 3, 3), (0, 0, 4, 4)), of((3, 3, 3, 3), (0, 0, 4, 4))) == Matches(1, 1, 1)


def best_assignment(found: Detections, truth: Detections) -> int:
    """Number of matches in the assignment that is best for the first detection, then for the second, and so on.

    Allowed are one-to-one assignments of boxes of the same class with an IoU of at least 0.5.
    """
    overlap = torchvision.ops.box_iou(torch.from_numpy(found.boxes), torch.from_numpy(truth.boxes)).tolist()
    nothing = len(truth.boxes)

    def gain(detection: int, choice: int) -> tuple[float, int]:
        return (0.0, 0) if choice == nothing else (overlap[detection][choice], -choice)

    def allowed(choices: tuple[int, ...]) -> bool:
        taken = [(detection, choice) for detection, choice in enumerate(choices) if choice != nothing]
        return len({choice for _, choice in taken}) == len(taken) and all(
            overlap[detection][choice] >= 0.5 and found.labels[detection] == truth.labels[choice]
            for detection, choice in taken
        )

    every = filter(allowed, itertools.product(range(nothing + 1), repeat=len(found.boxes)))
    best = max(every, key=lambda choices: [gain(*pair) for pair in enumerate(choices)])
    return sum(choice != nothing for choice in best)


@given(detections(), detections())
def test_matching_is_the_best_of_all_assignments_in_order_of_score(found: Detections, truth: Detections) -> None:
    matched = best_assignment(found, truth)
    assert match(found, truth) == Matches(matched, len(found.boxes) - matched, len(truth.boxes) - matched)


@given(detections())
def test_equal_detections_all_match(seen: Detections) -> None:
    assert match(seen, seen) == Matches(len(seen.boxes), 0, 0)


def test_a_second_detection_of_a_box_is_a_false_positive() -> None:
    assert match(of((0, 0, 10, 10), (0, 0, 10, 9)), of((0, 0, 10, 10))) == Matches(1, 1, 0)


def test_the_same_box_of_another_class_is_a_miss_and_a_false_positive() -> None:
    assert match(of((0, 0, 10, 10), labels=[1]), of((0, 0, 10, 10), labels=[2])) == Matches(0, 1, 1)


def test_an_iou_of_half_matches_and_less_does_not() -> None:
    assert match(of((0, 0, 10, 5)), of((0, 0, 10, 10))) == Matches(1, 0, 0)
    assert match(of((0, 0, 10, 4.99)), of((0, 0, 10, 10))) == Matches(0, 1, 1)


def test_rates_are_of_counts_summed_over_pictures() -> None:
    total = sum([Matches(3, 1, 0), Matches(0, 0, 2)], Matches())
    assert total == Matches(3, 1, 2)
    assert (total.precision, total.recall) == (0.75, 0.6)
    assert total.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))


def test_a_rate_of_nothing_is_nan() -> None:
    nothing, unseen, invented = Matches(), Matches(misses=2), Matches(false_positives=2)
    assert all(math.isnan(rate) for rate in (nothing.precision, nothing.recall, nothing.f1))
    assert math.isnan(unseen.precision)
    assert (unseen.recall, unseen.f1) == (0, 0)
    assert math.isnan(invented.recall)
    assert (invented.precision, invented.f1) == (0, 0)


def test_the_cascade_finds_the_face_of_the_held_out_photograph() -> None:
    (photograph,) = blurred_photographs("test")
    found = FaceCascade()(photograph.sharp)
    assert len(found.boxes) == 1
    left, top, right, bottom = found.boxes[0]
    # Eyes and mouth of the astronaut, located by hand.
    for x, y in ((207, 111), (239, 108), (227, 147)):
        assert left < x < right
        assert top < y < bottom
    assert right - left < 130


def test_the_cascade_finds_no_face_in_pictures_without_one_or_too_small() -> None:
    for shape in ((90, 120, 3), (20, 200, 3)):
        found = FaceCascade()(np.full(shape, 128, np.uint8))
        assert (found.boxes.shape, found.labels.shape) == ((0, 4), (0,))


@pytest.fixture(scope="module")
def network() -> Any:
    """torchvision's smallest detector, random, but with high scores for classes 7 and 3, varying by anchor."""
    torch.manual_seed(0)
    built = torchvision.models.get_model(SMALL, weights=None, weights_backbone=None).eval()
    for nth, layer in enumerate(built.head.classification_head.module_list):
        biases = layer[1].bias.data.view(-1, 91)  # of an anchor, of a class
        biases[:, 7] = torch.linspace(3, 6, len(biases)) + nth / 10
        biases[1, 3] = 7
    return built


@pytest.fixture(scope="module")
def source(network: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "ssd.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def detector(source: str) -> NetworkDetector:
    return NetworkDetector(SMALL, source)


def test_a_network_finds_what_torchvisions_finds_with_a_score_of_a_half(
    network: Any, detector: NetworkDetector
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with torch.no_grad():
        (expected,) = network([torchvision.transforms.functional.to_tensor(picture)])
    kept = expected["scores"] >= 0.5
    assert 0 < kept.sum() < len(kept)
    assert expected["scores"][kept].unique().numel() > 5
    assert set(expected["labels"][kept].tolist()) == {3, 7}
    found = detector(picture)
    np.testing.assert_allclose(found.boxes, expected["boxes"][kept].numpy(), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(found.labels, expected["labels"][kept].numpy())
    assert (found.boxes[:, 2:] <= (160, 120)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.regression_head.module_list.5.1.bias": None}, "head.regression_head.module_list.5.1.bias is absent"),
        ({"backbone.features.0.0.0.weight": torch.zeros(8, 3, 3, 3)}, r"is [8, 3, 3, 3], expected [16, 3, 3, 3]"),
        ({"roi_heads.mask": torch.zeros(1)}, "tensor roi_heads.mask is [1], expected absent"),
    ],
    ids=["missing", "misshapen", "of another network"],
)
def test_the_first_tensor_that_differs_is_named(
    network: Any, tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {**network.state_dict(), **change}
    other = {name: tensor for name, tensor in state.items() if tensor is not None}
    safetensors.torch.save_file(other, tmp_path / "other.safetensors")
    hint = f"--detector-weights takes the state dict of torchvision's {SMALL}"
    with pytest.raises(InputError, match=rf"other\.safetensors: .*{re.escape(message)}.*; {hint}"):
        NetworkDetector(SMALL, str(tmp_path / "other.safetensors"))


def test_the_definition_names_the_detector_and_its_weights(detector: NetworkDetector, source: str) -> None:
    assert f"{SMALL} with the weights of {source}, scores of at least 0.5" in definition(detector)
    assert "frontal faces, 60 pixels or larger" in definition(FaceCascade())
