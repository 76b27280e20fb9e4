"""A tiny measurement of loaders: all give batches of the same shape, and the figures are consistent."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import loader
from benchmarks.loader import Settings, decoded, measure, ours, pngs_of, several, webdataset_batches
from deblur.data import pictures

SMALL = Settings(pairs=6, crop=32, batch_size=4, batches=3, threads=2, rounds=1)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in {"HEIGHT": 96, "WIDTH": 160, "CUT": 64, "STEP": 32, "SHARD_BYTES": 100_000}.items():
        monkeypatch.setattr(loader, name, value)
    return loader.made(str(tmp_path / "made"), SMALL.pairs)


def test_every_loader_gives_batches_of_crops(data: str, tmp_path: Path) -> None:
    pngs = pngs_of(data)
    loader.write_files(tmp_path / "files", pngs)
    ways = {
        "files": loader._workers(loader.Files(tmp_path / "files", 32), SMALL),
        "several": several(pngs, SMALL),
        "webdataset": webdataset_batches(data, SMALL, own_decoder=True),
        "webdataset_decode": webdataset_batches(data, SMALL, own_decoder=False),
    }
    for name, way in ways.items():
        for batch in islice(way, 5):
            assert [tuple(side.shape) for side in batch] == [(4, 3, 32, 32)] * 2, name
    stream = ours(data, SMALL)
    for batch in islice(stream, 5):
        assert batch.blurred.shape == batch.sharp.shape == (4, 3, 32, 32)
        assert batch.sharp.dtype is torch.uint8
    stream.close()
    whole = next(decoded(pngs, SMALL))
    assert len(whole) == 2 * 4
    assert np.array_equal(whole[1], pictures.decode(pngs[0][1], ""))


def test_figures_are_consistent(data: str) -> None:
    figures = measure(replace(SMALL, data=data))
    for other in ("decode", "files", "several", "cut", "webdataset", "webdataset_decode"):
        rates = figures["ours_pairs_per_second"], figures[f"{other}_pairs_per_second"]
        assert figures[f"ours_to_{other}"] == pytest.approx(rates[0] / rates[1])
        assert len(figures[f"ours_to_{other}_of_each_round"]) == 1
    starts = figures["seconds_to_resume_at_nine_tenths"], figures["seconds_to_start"]
    assert figures["resume_to_start"] == pytest.approx(starts[0] / starts[1])
    assert figures["several_scenes_in_a_batch"] == 1
    assert figures["batch_bytes"] == 2 * 4 * 3 * 32 * 32
    assert figures["cut_bytes_to_whole"] > 1  # squares overlap by half
    assert figures["left_out"] == []
