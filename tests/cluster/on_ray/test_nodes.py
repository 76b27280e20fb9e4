"""Which nodes ranks start on, and that missing ones are requested from an autoscaler."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.util.placement_group import placement_group_table

from cluster.errors import InputError
from cluster.local import MARK, RAY, free_port, kill_processes
from cluster.on_ray import launch, nodes
from cluster.on_ray.placement import AUTOSCALES, Placement
from cluster.sync import Rank, Sync
from deblur.search.config import TuneSettings


@pytest.fixture
def autoscaled() -> Iterator[str]:
    """The address of a head without CPUs, with an autoscaler that starts up to two nodes of two CPUs on this machine.

    Ray's own AutoscalingCluster kills every Ray on the machine, and needs a file that Ray's wheels lack.
    """
    name, gcs = f"autoscaled{os.getpid()}", f"{ray.util.get_node_ip_address()}:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        config = Path(folder, "autoscaler.json")
        config.write_text(json.dumps(autoscaler(gcs)))
        for variable, value in {
            MARK: name,
            "SPT_NOENV": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }.items():
            patch.setenv(variable, value)
        command = [RAY, "start", "--head", "--port", gcs.partition(":")[2]]
        command += ["--autoscaling-config", str(config), "--temp-dir", folder, "--num-cpus", "0", "--num-gpus", "0"]
        command += ["--ray-client-server-port", str(free_port()), "--include-dashboard", "false"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        try:
            subprocess.run(command, check=True, capture_output=True)
            patch.undo()
            patch.setenv(AUTOSCALES, "1")
            ray.init(gcs, logging_level="WARNING")
            yield gcs
            ray.shutdown()
        finally:
            kill_processes(name)


def autoscaler(gcs: str) -> dict[str, Any]:
    """The configuration of an autoscaler whose nodes are processes on this machine."""
    provider = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    node = {"node_config": {}, "resources": {"CPU": 2, "object_store_memory": 100_000_000}, "max_workers": 2}
    files_and_commands = ("cluster_synced_files", "setup_commands", "head_setup_commands", "worker_setup_commands")
    return {
        "cluster_name": "autoscaled",
        "provider": {
            "type": "external",
            "module": provider,
            "gcs_address": gcs,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        **{none: [] for none in files_and_commands},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"node_config": {}, "resources": {}, "max_workers": 0},
            "worker": node,
        },
    }


def record(config: dict[str, Any], rank: Rank, sync: Sync) -> bool:
    """Records its node."""
    Path(config["folder"], f"{rank.rank}").write_text(ray.get_runtime_context().get_node_id())
    return True


@pytest.mark.soak
def test_as_many_missing_nodes_are_requested_as_the_autoscaler_can_provide(autoscaled: str, tmp_path: Path) -> None:
    before = {node["NodeID"] for node in ray.nodes()}
    placement = Placement(nodes=3, min_nodes=2, wait_s=90)
    launch.launch(record, lambda _: {"folder": str(tmp_path)}, placement, lambda: 0)
    found = [path.read_text() for path in tmp_path.iterdir()]
    assert len(found) == 2
    assert len({*found} - before) == 2, "ranks are not on the requested nodes"
    assert [group for group in placement_group_table().values() if group["state"] != "REMOVED"] == []
    status = subprocess.run([RAY, "status", "--address", autoscaled], check=True, capture_output=True, text=True)
    assert "(no resource demands)" in status.stdout


def test_a_node_that_becomes_free_while_nodes_are_chosen_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A joined node is free at once, one whose ranks have just ended after a first question about the cluster."""
    answers = iter([False, *[True] * 9])
    free = {"NodeID": "joined", "Resources": {"CPU": 1}}, {"NodeID": "of the last ranks", "Resources": {"CPU": 1}}
    monkeypatch.setattr(nodes, "_any_busy", lambda: not next(answers))
    monkeypatch.setattr(nodes, "free_nodes", lambda *_: list(free[: 1 + next(answers)]))
    monkeypatch.setattr(nodes, "_alive_nodes", lambda: list(free))
    monkeypatch.setattr(nodes, "_remove_orphaned_placement_groups", lambda: None)
    assert nodes.wait_for_nodes(Placement(nodes=2, min_nodes=1)).nodes == 2


@pytest.mark.parametrize(
    ("placement", "flag"),
    [
        (Placement(ranks_per_node=3, wait_s=0), "3 ranks: the largest has 2 CPUs; lower --ranks-per-node"),
        (
            Placement(groups_per_node=5, wait_s=0),
            "5 trials of 1 ranks: .* has 2 CPUs; lower --trials-per-node",
        ),
    ],
)
def test_ranks_that_fit_on_no_node_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, placement: Placement, flag: str
) -> None:
    monkeypatch.setattr(nodes, "_alive_nodes", lambda: [{"Resources": {}}, {"Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(nodes, "free_nodes", lambda *_: [])
    monkeypatch.setattr(nodes, "_any_busy", lambda: False)
    monkeypatch.setattr(nodes, "_remove_orphaned_placement_groups", lambda: None)
    with pytest.raises(InputError, match=flag):
        nodes.wait_for_nodes(placement)


def test_a_missing_node_is_asked_for_with_the_flags_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"NodeID": "n", "Resources": {"CPU": 2}}
    monkeypatch.setattr(nodes, "_alive_nodes", lambda: [node])
    monkeypatch.setattr(nodes, "_any_busy", lambda: False)
    monkeypatch.setattr(nodes, "free_nodes", lambda *_: [node])
    monkeypatch.setattr(nodes, "_remove_orphaned_placement_groups", lambda: None)
    searching = TuneSettings(nodes_per_trial=3, wait_s=0).placement
    with pytest.raises(InputError, match=r"1 of 3 nodes are available.* --nodes-per-trial 1 "):
        nodes.wait_for_nodes(searching)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head"])
def test_the_address_for_jobs_is_refused_for_drivers(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=f"RAY_ADDRESS is {address}"), launch.connected():
        pass
