"""Packing in chunks and parts: the bytes of one machine, whatever completes first, and nothing is done twice."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from ray import cloudpickle

from cluster.errors import InputError
from cluster.storage import open_store
from deblur.data import pack_nodes
from deblur.data.dataset import open_dataset
from deblur.data.pack_settings import PackSettings
from deblur.data.packing import pack
from tests.datasets import picture


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    (tmp_path / "photographs").mkdir()
    for nth in range(23):
        PIL.Image.fromarray(picture(nth, 120 + nth, 200)).save(tmp_path / "photographs" / f"{nth:02d}.png")
    return tmp_path / "photographs"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No cluster: items and results are pickled, and complete in random order. Returns what was worked on."""
    worked: list[str] = []

    def for_each(make: Callable[[], Any], items: list[Any], _: object) -> Iterator[tuple[Any, Any]]:
        order = random.Random(len(worked)).sample(items, len(items))
        for item in order:
            worked.append(item.name)
            work, arrived = cloudpickle.loads(cloudpickle.dumps((make, item)))
            yield item, cloudpickle.loads(cloudpickle.dumps(work()(arrived)))

    monkeypatch.setattr("cluster.on_ray.tasks.for_each", for_each)
    monkeypatch.setattr("cluster.on_ray.launch.check_nodes_can_access", lambda *_: [])
    monkeypatch.setattr(pack_nodes, "PAIRS_PER_CHUNK", 4)
    return worked


def objects(folder: Path) -> dict[str, bytes]:
    return {key: open_store(folder).get(key) for key in open_store(folder).list()}


def settings(source: Path, out: Path, **more: Any) -> PackSettings:
    return PackSettings(source=str(source), out=str(out), shard_mb=1, **{"validation_scenes": 3, **more})


@pytest.mark.parametrize(
    "more",
    [{}, {"cut": 32, "step": 16}, {"blur_model": "camera", "blurs_per_photo": 2}, {"validation_scenes": 0}],
    ids=["whole", "cut", "camera", "train only"],
)
def test_nodes_write_the_bytes_of_one_machine(
    photographs: Path, tmp_path: Path, nodes: list[str], more: dict[str, Any]
) -> None:
    pack(settings(photographs, tmp_path / "one", **more))
    pack(settings(photographs, tmp_path / "two", nodes=2, **more))
    assert objects(tmp_path / "one") == objects(tmp_path / "two")
    assert len(open_dataset(str(tmp_path / "two")).index.splits["train"].shards) > 1
    assert len(nodes) > 5


def test_what_was_packed_before_an_interruption_is_not_packed_again(
    photographs: Path, tmp_path: Path, nodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = pack_nodes.pack_one, []

    def counted(source: Any, cut: Any) -> Any:
        if len(done) == 14:
            raise KeyboardInterrupt
        done.append(source.key)
        return real(source, cut)

    monkeypatch.setattr(pack_nodes, "pack_one", counted)
    with pytest.raises(KeyboardInterrupt):
        pack(settings(photographs, tmp_path / "out", nodes=2))
    kept = [key for key in open_store(tmp_path / "out").list() if key.endswith(".json")]
    assert kept
    assert "index.json" not in kept
    before = len(done)
    done.append("not fifteen")
    pack(settings(photographs, tmp_path / "out", nodes=2))
    again = len(done) - before - 1
    assert again <= 23 - 4 * (len(kept) - 1)
    pack(settings(photographs, tmp_path / "one"))
    assert objects(tmp_path / "out") == objects(tmp_path / "one")


def test_parts_of_other_settings_are_not_used_and_all_are_deleted(
    photographs: Path, tmp_path: Path, nodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_nodes, "assemble", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack(settings(photographs, tmp_path / "out", nodes=2))
    monkeypatch.undo()
    assert any(key.startswith("parts/") for key in open_store(tmp_path / "out").list())
    pack(settings(photographs, tmp_path / "out", cut=32))
    pack(settings(photographs, tmp_path / "one", cut=32))
    assert objects(tmp_path / "out") == objects(tmp_path / "one")


def test_damaged_pictures_are_left_out_as_on_one_machine(photographs: Path, tmp_path: Path, nodes: list[str]) -> None:
    path = photographs / "07.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    with pytest.raises(InputError, match=r"1 of 23 pairs are bad.*07\.png"):
        pack(settings(photographs, tmp_path / "repaired", nodes=2))
    for name, more in (("one", {}), ("two", {"nodes": 2})):
        pack(settings(photographs, tmp_path / name, max_bad_share=0.1, **more))
    assert objects(tmp_path / "one") == objects(tmp_path / "two")
    path.write_bytes(whole)
    repaired = pack(settings(photographs, tmp_path / "repaired", nodes=2))
    assert sum(split.num_samples for split in repaired.splits.values()) == 23
    splits = open_dataset(str(tmp_path / "two")).index.splits
    assert sum(split.num_samples for split in splits.values()) == 22


def test_a_replaced_dataset_is_complete_until_then(photographs: Path, tmp_path: Path, nodes: list[str]) -> None:
    pack(settings(photographs, tmp_path / "out"))
    index = pack(settings(photographs, tmp_path / "out", seed=1, overwrite=True, nodes=2))
    assert index.folder == "pack-1"
    dataset = open_dataset(str(tmp_path / "out"))
    shard = dataset.index.splits["train"].shards[0]
    assert len(dataset.samples(shard)) == shard.num_samples
