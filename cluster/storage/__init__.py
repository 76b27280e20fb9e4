"""Object storage in folders and S3 buckets; checkpoints, the lease of a run, and a disk cache on top of it.

May import cluster.errors.
"""

from cluster.storage.base import Retry, Store, Traffic, absolute, join
from cluster.storage.open import open_store, read_url

__all__ = ["Retry", "Store", "Traffic", "absolute", "join", "open_store", "read_url"]
