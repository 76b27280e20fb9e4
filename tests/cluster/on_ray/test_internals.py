"""Contract with Ray's private API: on another version this says which part of cluster/on_ray/internals.py to check."""

import importlib
import inspect
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

SIGNATURES = {
    "ray._private.state:available_resources_per_node": "()",
    "ray._private.state:GlobalState._connect_and_get_accessor": "(self) -> ray._raylet.GlobalStateAccessor",
    "ray.serve._private.http_util:configure_http_middlewares": "(http_options: ray.serve.config.HTTPOptions) -> "
    "ray.serve.config.HTTPOptions",
    "ray.train.v2._internal.exceptions:WorkerGroupStartupTimeoutError.__init__": "(self, num_workers: int)",
    "ray.train.v2._internal.exceptions:WorkerHealthCheckFailedError.__init__": "(self, message, failure: Exception)",
}
FIELDS = {
    "ray.core.generated.gcs_pb2:PlacementGroupTableData": (
        "placement_group_id creator_actor_dead creator_actor_id creator_job_id is_detached state"
    ),
    "ray.core.generated.autoscaler_pb2:GetClusterStatusReply": "autoscaling_state",
    "ray.core.generated.autoscaler_pb2:AutoscalingState": "infeasible_gang_resource_requests",
    "ray.core.generated.autoscaler_pb2:GangResourceRequest": "details",
}


@pytest.fixture(scope="module")
def internals() -> ModuleType:
    """Imported by the tests that call it, so that the others still run where the import fails."""
    return importlib.import_module("cluster.on_ray.internals")


def look_up(path: str) -> Any:
    """An attribute by `module:name`; fails naming it where it is gone."""
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"Ray {ray.__version__} has no {path}, which cluster/on_ray/internals.py uses"
        found = getattr(found, part)
    return found


def test_ray_has_the_version_that_was_checked(internals: ModuleType) -> None:
    assert ray.__version__ == internals.RAY_VERSION, (
        f"Ray is {ray.__version__}; run this file, check by each `Missing:` in cluster/on_ray/internals.py whether the "
        "API is public now, then set RAY_VERSION there"
    )


@pytest.mark.parametrize(("path", "expected"), SIGNATURES.items())
def test_signature_is_unchanged(path: str, expected: str) -> None:
    assert str(inspect.signature(look_up(path))) == expected, f"the signature of {path} differs"


@pytest.mark.parametrize(("path", "fields"), FIELDS.items())
def test_message_has_the_fields_that_are_read(path: str, fields: str) -> None:
    assert set(fields.split()) - set(look_up(path).DESCRIPTOR.fields_by_name) == set()


def test_serve_still_has_the_two_hooks(internals: ModuleType) -> None:
    hook = look_up("ray.serve._private.replica:SERVE_BUILD_ASGI_APP_METHOD")
    assert hasattr(internals.LateIngress, hook)
    constants = inspect.getsource(importlib.import_module("ray.serve._private.constants"))
    assert f'"{internals.PROXY_MIDDLEWARES}"' in constants


# ---- on a running cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=3, logging_level="WARNING")
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Owner:
    """Makes a placement group of one CPU."""

    def reserve(self) -> str:
        group = placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return str(group.id.hex())


@pytest.mark.usefixtures("cluster")
def test_resources_are_those_of_the_node(internals: ModuleType) -> None:
    [node] = ray.nodes()
    assert internals.available_resources_per_node()[node["NodeID"]]["CPU"] == 3


@pytest.mark.usefixtures("cluster")
def test_placement_group_is_an_orphan_when_its_actor_is_dead(internals: ModuleType) -> None:
    living, dead = Owner.remote(), Owner.remote()
    _, orphan = ray.get([living.reserve.remote(), dead.reserve.remote()])
    own = placement_group([{"CPU": 1}])
    assert internals.orphaned_placement_groups() == []
    ray.kill(dead)
    deadline = time.monotonic() + 30
    while not (orphans := internals.orphaned_placement_groups()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [group.id.hex() for group in orphans] == [orphan]
    remove_placement_group(orphans[0])
    remove_placement_group(own)
    while internals.orphaned_placement_groups():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("cluster")
def test_nothing_is_infeasible_without_an_autoscaler(internals: ModuleType) -> None:
    group = placement_group([{"CPU": 100}])
    assert not internals.is_infeasible(group, timeout_s=10)
    remove_placement_group(group)


def test_death_of_a_worker_is_unwrapped(internals: ModuleType) -> None:
    wrap = look_up("ray.train.v2._internal.exceptions:WorkerHealthCheckFailedError")
    death = ray.exceptions.ActorDiedError()
    assert internals.unwrap_worker_failure(wrap("health check failed", death)) is death
    assert internals.unwrap_worker_failure(death) is death


def test_startup_timeout_is_told_from_other_errors(internals: ModuleType) -> None:
    timeout = look_up("ray.train.v2._internal.exceptions:WorkerGroupStartupTimeoutError")
    assert internals.is_startup_timeout(timeout(1))
    assert not internals.is_startup_timeout(TimeoutError())
