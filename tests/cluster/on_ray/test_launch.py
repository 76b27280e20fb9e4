"""Groups of ranks under Ray Train: restarts, final errors, and messages."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.util.placement_group import placement_group_table

from cluster.errors import DamagedError, InputError, RanksFailed
from cluster.on_ray import internals, launch
from cluster.on_ray.nodes import count_free_slots, wait_for_nodes
from cluster.on_ray.placement import LOGICAL_GPUS, Placement
from cluster.sync import Rank, Sync


@pytest.fixture(scope="module", autouse=True)
def two_cpus() -> Any:
    ray.init(num_cpus=2, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.mark.parametrize(
    ("placement", "pattern"),
    [
        (Placement(nodes=3, wait_s=0), r"1 of 3 nodes .* or use --nodes 1 \(--wait-s 0\)"),
        (Placement(nodes=5, min_nodes=2, wait_s=0), r"1 of 2 nodes"),
        (Placement(ranks_per_node=3, wait_s=0), r"no node is large enough for 3 ranks: the largest has 2 CPUs"),
    ],
)
def test_missing_nodes_are_an_error_after_the_timeout(placement: Placement, pattern: str) -> None:
    groups = placement_group_table()
    with pytest.raises(InputError, match=pattern):
        launch.launch(damaged, lambda _: {}, placement, progress=lambda: 0)
    assert placement_group_table() == groups, "nodes were requested although there is no autoscaler"


def starts(folder: Path) -> int:
    return len(list(folder.iterdir()))


def damaged(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    """Rank 1 raises an error that is not retryable; the other waits for it."""
    Path(config["folder"], f"{time.time_ns()}").touch()
    if rank.rank == 1:
        raise DamagedError("train/000001.tar: sample 7: its bytes are not those of the index")
    sync.broadcast_from_rank0(lambda: time.sleep(1))
    sync.broadcast_from_rank0(lambda: None)
    return True


def test_final_error_ends_the_run_at_once_and_is_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"^train/000001\.tar: sample 7: its bytes are not those of the index$"):
        launch.launch(damaged, lambda _: {"folder": str(tmp_path)}, Placement(ranks_per_node=2), lambda: 0)
    assert starts(tmp_path) == 2, "the group was restarted"


def dying(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    """Dies like a process that the kernel kills in the first `deaths` starts; then returns False `stops` times."""
    folder = Path(config["folder"])
    (folder / f"{time.time_ns()}").touch()
    if starts(folder) <= config["deaths"]:
        time.sleep(3)  # else Ray Train may still be starting the group, and reports another error
        os.kill(os.getpid(), 9)
    return starts(folder) > config["deaths"] + config["stops"]


@pytest.mark.soak
def test_ranks_are_restarted_while_there_is_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "MAX_FAILURES", 1)
    config = {"folder": str(tmp_path), "deaths": 2, "stops": 1}
    launch.launch(dying, lambda _: config, Placement(), progress=lambda: starts(tmp_path))
    assert starts(tmp_path) == 4
    out = capsys.readouterr().out
    assert out.count("rank 0 was lost: ") == 2
    assert "from 2 (failure 1 of at most 1 without progress)" in out


class Bomb:
    """Kills the rank that unpickles it, while its group is being started."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode_in_a_rank, ()


def _explode_in_a_rank() -> None:
    if b"RayTrainWorker" in Path("/proc/self/cmdline").read_bytes():
        os.kill(os.getpid(), 9)


def fine(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    return True


def test_ranks_that_die_during_startup_do_not_keep_nodes_reserved(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2}')
    configs = iter([{"bomb": Bomb()}, {}])
    launch.launch(fine, lambda _: next(configs), Placement(wait_s=30), progress=lambda: 0)
    assert "ActorDiedError" in capsys.readouterr().out


@pytest.mark.soak
def test_failures_without_progress_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MAX_FAILURES", 1)
    with pytest.raises(RanksFailed, match=r"^2 failures without progress; .*rank 0 was lost: "):
        launch.launch(dying, lambda _: {"folder": str(tmp_path), "deaths": 99}, Placement(), progress=lambda: 0)
    assert starts(tmp_path) == 2


@contextlib.contextmanager
def one_busy_cpu() -> Iterator[None]:
    """One of the two is used by another task for some seconds; before and after that both are free."""
    wait_until_free(2)
    busy = ray.remote(num_cpus=1)(_busy).remote()
    wait_until_free(1)
    yield
    ray.get(busy)
    wait_until_free(2)


def wait_until_free(cpus: int) -> None:
    (node,) = (node["NodeID"] for node in ray.nodes())
    while internals.available_resources_per_node().get(node, {}).get("CPU", 0) != cpus:
        time.sleep(0.1)


def test_busy_node_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with one_busy_cpu():
        assert launch.everywhere(Placement(wait_s=60), _fine) == {ray.util.get_node_ip_address(): "fine"}
    assert "waiting for nodes: 0 of 1 nodes" in capsys.readouterr().out


def test_free_slots_are_counted() -> None:
    placements = [Placement(), Placement(groups_per_node=2), Placement(groups_per_node=3), Placement(nodes=2)]
    wait_until_free(2)
    assert list(map(count_free_slots, placements)) == [1, 2, 0, 0]
    with one_busy_cpu():
        assert list(map(count_free_slots, placements)) == [0, 1, 0, 0]


def test_busy_nodes_of_a_shared_cluster_do_not_count_towards_the_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    with one_busy_cpu():
        assert wait_for_nodes(Placement(wait_s=1, shared_cluster=True)).cpus_per_rank == 2
    with pytest.raises(InputError, match="waited 1 s: 1 of 2 nodes"):
        wait_for_nodes(Placement(nodes=2, wait_s=1, shared_cluster=True))


def _busy() -> None:
    time.sleep(5)


def _fine() -> str:
    return "fine"


# ---- in another cluster: this process disconnects from that of the tests above


@pytest.fixture(scope="module")
def logical_gpu() -> Iterator[None]:
    """A node that declares a GPU."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOGICAL_GPUS, "1")
        ray.init(num_cpus=2, num_gpus=1, logging_level="WARNING")
        yield
    ray.shutdown()


def record(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    """Records its device and what it has reserved."""
    found = {"device": rank.device.type, "backend": dist.get_backend(), "gpus": len(ray.get_gpu_ids())}
    Path(config["folder"], f"{rank.rank}").write_text(json.dumps(found))
    return True


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


@pytest.mark.usefixtures("logical_gpu")
def test_ranks_reserve_logical_gpus_and_compute_on_cpus(tmp_path: Path) -> None:
    launch.launch(record, lambda _: {"folder": str(tmp_path)}, Placement(wait_s=60), lambda: 0)
    [rank] = read(tmp_path)
    assert (rank["device"], rank["backend"], rank["gpus"]) == ("cpu", "gloo", 1)


@pytest.mark.usefixtures("logical_gpu")
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA works here")
def test_node_whose_gpus_do_not_work_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGICAL_GPUS)
    with pytest.raises(InputError, match=rf"^{ray.util.get_node_ip_address()}: .*{LOGICAL_GPUS}=1"):
        launch.launch(record, lambda _: {"folder": str(tmp_path)}, Placement(wait_s=60), lambda: 0)
