"""Scores over the validation split, against scikit-image's."""

from pathlib import Path

import numpy as np
import pytest
import skimage.metrics
from torch import nn

from cluster.storage import open_store
from cluster.sync import Rank, Sync
from deblur.data.dataset import Dataset
from deblur.data.index import Index
from deblur.data.loader import pairs_of
from deblur.data.pictures import encode_png
from deblur.data.shards import PackedSample, write_split
from deblur.training.validation import Validator
from tests.datasets import picture, samples


def test_pairs_without_blur_are_left_out(tmp_path: Path) -> None:
    store, png = open_store(tmp_path), encode_png(picture(9, 48, 56))
    same = PackedSample(key="w", blurred_png=png, sharp_png=png, meta={}, size=(48, 56))
    split = write_split(store, "validation", [*samples("v", 3, 48, 56), same], 1 << 30)
    dataset = Dataset(store, Index(made={}, splits={"validation": split}))
    expected = [skimage.metrics.peak_signal_noise_ratio(s, b) for b, s in pairs_of(dataset, split, range(3), 1)]
    scores = Validator(dataset, Rank(), Sync(), 1).scores(nn.Identity())
    assert scores["validation_blurred_psnr"] == pytest.approx(np.mean(expected), abs=1e-4)
    assert scores["validation_psnr"] == pytest.approx(np.mean(expected), abs=1e-4)
