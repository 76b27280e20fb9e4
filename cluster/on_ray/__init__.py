"""Everything that runs on Ray: Train, Tune, Serve, tasks, and which nodes they can use.

May import cluster.storage and the modules of cluster. Ray is imported in this package alone (and in cluster.local, which
starts it).
"""
