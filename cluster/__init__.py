"""Where work runs: errors, storage, Ray, metrics. Knows nothing of what is learned.

May import cluster, whose packages say what each of them may import.
"""
