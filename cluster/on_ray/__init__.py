"""Everything that runs on Ray: Train, Tune, Serve, tasks, and which nodes they can use.

May import cluster.storage, cluster.errors, cluster.gate and cluster.sync.
Only this package and cluster.local import Ray.
"""
