"""A function for each of many items on real nodes: retries, items that fail, and lost nodes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from ray.exceptions import RayError

from cluster.errors import InputError
from cluster.local import LocalCluster, Settings, local_cluster
from cluster.on_ray import tasks
from cluster.on_ray.placement import Placement
from cluster.on_ray.tasks import for_each


def maker(folder: Path) -> Callable[[int], str]:
    """Records processes and attempts; item 2 kills its process once, item 3 always, item 4 is rejected."""
    (folder / f"process-{os.getpid()}").touch()

    def work(item: int) -> str:
        attempts = len(list(folder.glob(f"{item}-*"))) + 1
        (folder / f"{item}-{attempts}").touch()
        if item == 3 or (item == 2 and attempts == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 4:
            raise InputError("4: not supported")
        return f"{item} done"

    return work


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A node of two CPUs, to which this process connects. The last test kills it."""
    with local_cluster(Settings(nodes=1, cpus_per_node=2)) as started, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", started.ray)
        yield started


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_items_are_retried_when_their_process_dies_and_fail_after_the_last_retry(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    outcomes = dict(for_each(partial(maker, tmp_path), [0, 1, 2, 3, 5, 6, 7, 8], Placement(nodes=1)))
    failed = outcomes.pop(3)
    assert isinstance(failed, RayError)
    assert outcomes == {item: f"{item} done" for item in (0, 1, 2, 5, 6, 7, 8)}
    attempts = {item: len(list(tmp_path.glob(f"{item}-*"))) for item in (0, 2, 3, 8)}
    assert attempts == {0: 1, 2: 2, 3: 1 + tasks.RETRIES, 8: 1}
    # Called once per process: two at the same time, and one more for each that was killed.
    assert len(list(tmp_path.glob("process-*"))) <= 2 + 1 + 1 + tasks.RETRIES


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_error_raised_by_the_function_ends_everything(cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4: not supported"):
        list(for_each(partial(maker, tmp_path), [0, 4], Placement(nodes=1)))


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_loss_of_all_nodes_is_printed_and_an_error_after_the_timeout(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "NODE_CHECK_S", 1.0)
    outcomes = for_each(lambda: time.sleep, [0, 600], Placement(nodes=1, wait_s=5))
    assert next(outcomes)[0] == 0
    cluster.nodes[0].kill()
    with pytest.raises(InputError, match=r"5 s \(--wait-s\)"):
        next(outcomes)
    assert "waiting for nodes: " in capsys.readouterr().out
