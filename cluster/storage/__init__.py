"""Objects in folders and buckets, and what is kept in them: checkpoints, the lease of a run, a cache of shards.

May import cluster.errors.
"""

from cluster.storage.base import Retry, Store, Traffic, absolute, join
from cluster.storage.open import open_store, read_url

__all__ = ["Retry", "Store", "Traffic", "absolute", "join", "open_store", "read_url"]
