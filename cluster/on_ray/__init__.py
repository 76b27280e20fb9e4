"""Everything that runs on Ray: Train, Tune, Serve, tasks, and which nodes they can use.

May import cluster.storage and the modules of cluster. Only this package and cluster.local import Ray.
"""
