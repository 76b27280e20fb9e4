"""A packed dataset: its index, and access to its shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cluster.errors import InputError
from cluster.storage import Retry, Store, join, open_store
from cluster.storage.cache import Cache
from deblur.data.index import Index, Sample, Shard, read_index, read_table


@dataclass(frozen=True)
class Dataset:
    """The store of a dataset's shards, its index, and optionally this node's disk cache of its shards."""

    store: Store
    index: Index
    cache: Cache | None = None

    def samples(self, shard: Shard) -> Sequence[Sample]:
        """The samples of a shard, read from the store at the first call. Raises DamagedError."""
        return self.index.tables.get(shard.name) or _table(self.store, shard)  # type: ignore[arg-type]  # hashable

    def read(self, shard: Shard, start: int, end: int) -> bytes:
        """The bytes [start, end) of a shard."""
        return (self.cache or self.store).get(shard.name, start, end)

    def read_again(self, shard: Shard, sample: Sample) -> bytes:
        """A sample's slice from the store, bypassing the cache, after its bytes were wrong."""
        start, end = sample.offset, sample.offset + sample.length
        if self.cache:
            self.cache.forget(shard.name, start, end)
        return self.store.get(shard.name, start, end)


_table = lru_cache(maxsize=256)(read_table)  # of all lanes that a process has; about 0.2 KB per sample


def open_dataset(url: str, retry: Retry | None = None) -> Dataset:
    """The dataset at a URL. Raises InputError if there is none, or if its training split is empty."""
    dataset = read_dataset(url, retry)
    if not dataset.index.splits["train"].num_samples:
        raise InputError(f"{url}: the training split is empty; pack it again")
    return dataset


def read_dataset(url: str, retry: Retry | None = None) -> Dataset:
    """The dataset at a URL, for any of its splits. Raises like `read_index`."""
    store = open_store(url, retry)
    index = read_index(store)
    return Dataset(open_store(join(store.url, index.folder), retry) if index.folder else store, index)
