"""A place that one node cannot access is refused before the start, with the settings to fix."""

from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.on_ray import launch
from cluster.on_ray.placement import Placement
from cluster.storage import join, open_store, preflight
from deblur.training.job import check_access
from tests.datasets import write_dataset


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket")


def test_a_machine_that_reaches_everything_has_nothing_to_say_and_leaves_nothing(root: str) -> None:
    open_store(root).put("data/index.json", b"{}")
    runs = join(root, "runs")
    with preflight.marker(open_store(runs)) as key:
        assert preflight.check_storage_access(join(root, "data", "index.json"), runs, key) == ""
    assert open_store(root).list() == ["data/index.json"]


def test_a_machine_with_another_folder_of_that_name_says_so(tmp_path: Path) -> None:
    open_store(tmp_path).put("data/index.json", b"{}")
    said = preflight.check_storage_access(str(tmp_path / "data" / "index.json"), str(tmp_path / "own"), "preflight/1")
    assert said.startswith(f"{tmp_path}/own: ")


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    with preflight.marker(open_store(tmp_path)) as key:
        said = preflight.check_storage_access(str(tmp_path / "no" / "index.json"), str(tmp_path), key)
    assert said == f"{tmp_path}/no/index.json: no such file"


def test_a_node_that_sees_another_folder_is_refused_with_both_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asked node looks into a root of its own, as on machines that share no disk."""
    write_dataset(open_store(tmp_path / "data"), train=3)

    def everywhere(placement, function, readable, writable, key):
        return {
            "10.0.0.1": function(readable, writable, key),
            "10.0.0.2": function(readable, f"{writable}-of-another-machine", key),
        }

    monkeypatch.setattr(launch, "everywhere", everywhere)
    with pytest.raises(InputError, match=r"node 10\.0\.0\.2: .*DEBLUR_DATA, DEBLUR_RUNS"):
        check_access(str(tmp_path / "data"), str(tmp_path / "runs"), Placement(nodes=2))
