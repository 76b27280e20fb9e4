"""Learning rates against the paper's sentence: constant for half the run, then linearly to zero."""

import pytest

from deblur.training.schedule import lr_at


@pytest.mark.parametrize(
    ("images_seen", "expected"),
    [(0, 1e-4), (499, 1e-4), (500, 1e-4), (750, 5e-5), (900, 2e-5), (1000, 0.0), (1100, 0.0)],
)
def test_constant_for_half_the_run_then_linear_to_zero(images_seen: int, expected: float) -> None:
    assert lr_at(1e-4, images_seen, 1000, 0.5) == pytest.approx(expected)


def test_a_share_of_one_is_constant() -> None:
    assert {lr_at(3.0, images, 1000, 1.0) for images in range(0, 1001, 50)} == {3.0}
