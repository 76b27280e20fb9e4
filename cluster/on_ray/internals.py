"""All private API of Ray that this project uses, behind typed functions.

Checked against RAY_VERSION. On another version run tests/cluster/on_ray/test_internals.py, which names what changed.
"""

from typing import Any, TypeVar

import ray
from ray._private import state, worker
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.util.placement_group import PlacementGroup

RAY_VERSION = "2.58.1"

# Missing: a way to put ASGI middleware in front of Serve's proxies. HTTPOptions.middlewares was removed, and middleware
# of an ingress deployment runs in the replica, after the body has begun to occupy it. The variable names a function
# that returns the middlewares; it has to be in the environment of the process that starts the proxy.
PROXY_MIDDLEWARES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"

_App = TypeVar("_App")


class LateIngress:
    """A class for `@serve.ingress()` whose constructor sets `asgi_app`.

    Missing: an ingress whose app is made by the replica. `serve.ingress` takes an app that can be pickled, or a
    function without arguments; only this hook sees the instance.
    """

    asgi_app: Any

    def __serve_build_asgi_app__(self) -> Any:
        return self.asgi_app


def available_resources_per_node() -> dict[str, dict[str, float]]:
    """Free resources of each live node by its id; a resource may be absent if none of it is free.

    Missing: `ray.available_resources` of one node. It gives the sum over the cluster.
    """
    found: dict[str, dict[str, float]] = state.available_resources_per_node()
    return found


def orphaned_placement_groups() -> list[PlacementGroup]:
    """Placement groups of this job that were made by actors which have died.

    Missing: the creator of a placement group. Neither `placement_group_table` nor `ray.util.state` gives it.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    table = [
        gcs_pb2.PlacementGroupTableData.FromString(data)  # type: ignore[attr-defined]
        for data in state.state._connect_and_get_accessor().get_placement_group_table()
    ]
    removed = gcs_pb2.PlacementGroupTableData.REMOVED  # type: ignore[attr-defined]
    return [
        PlacementGroup(ray.PlacementGroupID(group.placement_group_id))
        for group in table
        if group.creator_actor_dead
        and not ray.ActorID(group.creator_actor_id).is_nil()
        and group.creator_job_id == job
        and not group.is_detached
        and group.state != removed
    ]


def is_infeasible(group: PlacementGroup, timeout_s: float) -> bool:
    """Whether the autoscaler (v2) has reported that it cannot provide the nodes of a placement group.

    Missing: the autoscaler's answer to a request. A placement group stays PENDING either way.
    """
    reply = worker.global_worker.gcs_client.get_cluster_status(timeout_s=timeout_s)  # type: ignore[attr-defined]
    status = autoscaler_pb2.GetClusterStatusReply.FromString(reply)  # type: ignore[attr-defined]
    requests = status.autoscaling_state.infeasible_gang_resource_requests
    return any(group.id.hex() in request.details for request in requests)


def is_startup_timeout(error: BaseException) -> bool:
    """Whether a `ControllerError.controller_failure` is a timeout of workers that did not get their resources in time.

    Missing: a public class for it.
    """
    # Imported here because replicas of a service, which do not need it, would pay for it in memory.
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(error, WorkerGroupStartupTimeoutError)


def unwrap_worker_failure(error: Exception) -> Exception:
    """What ended a worker, of an entry of `WorkerGroupError.worker_failures`.

    Missing: the same from Ray Train itself, which wraps the death of a worker and not what its function raised.
    """
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    if isinstance(error, WorkerHealthCheckFailedError):
        return error.health_check_failure
    return error
