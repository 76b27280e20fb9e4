"""The benchmark of the index measures both versions on the same samples."""

from pathlib import Path

import pytest

from benchmarks.index import Settings, measure, start, write_version_1, write_version_2
from cluster.storage import open_store
from deblur.data.dataset import open_dataset


def test_both_versions_hold_the_same_samples(tmp_path: Path) -> None:
    found = []
    for name, write in (("1", write_version_1), ("2", write_version_2)):
        write(open_store(tmp_path / name), 1300)
        assert start(str(tmp_path / name)) > 0
        dataset = open_dataset(str(tmp_path / name))
        found.append([tuple(dataset.samples(shard)) for shard in dataset.index.splits["train"].shards])
    assert found[0] == found[1]
    assert [len(samples) for samples in found[0]] == [500, 500, 300]


def test_figures_are_of_each_number_and_version() -> None:
    figures = measure(Settings(samples="600,1200", version_1_up_to=600))
    assert set(figures) == {"600 version 2", "600 version 1", "1,200 version 2"}
    assert figures["600 version 1"]["index_json_mb"] == pytest.approx(0.1, abs=0.1)
    assert all(figure["seconds"] > 0 for figure in figures.values())
