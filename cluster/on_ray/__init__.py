"""Everything that runs on Ray: Train, Tune, Serve, tasks, and the choice of nodes.

May import cluster.storage, cluster.errors, cluster.gate and cluster.sync.
Only this package and cluster.local import Ray; only cluster.on_ray.internals uses its private API.
"""
