"""Packing: writes the shards and the index of a dataset."""

import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
from tqdm import tqdm

from cluster.errors import DamagedError, InputError
from cluster.storage import Store, join, open_store
from deblur.data.index import INDEX, Index, Split, read_index, write_index
from deblur.data.pack_nodes import PARTS, pack_on_nodes
from deblur.data.pack_one import pack_one
from deblur.data.pack_settings import SAMPLES, PackSettings
from deblur.data.shards import PackedSample, write_split
from deblur.data.sources import COMPARED, Source, checked_sources, refuse_bad

GOPRO_COUNTS = {"train": 2103, "test": 1111}  # of the complete GOPRO_Large
_THREADS = 4
_SHARD = r"(train|validation|test)/\d{6}"
_OURS = re.compile(rf"(pack-\d+/)?{_SHARD}\.(tar|npz)|{PARTS}/\w+/{_SHARD}\.(pngs|json)")


def pack(settings: PackSettings) -> Index:
    """Writes the dataset and returns its index; a dataset that it replaces stays until then.

    Everything that needs no decoding is validated before any write. Raises InputError; for pictures that do not decode
    at the end, naming all of them.
    """
    store = open_store(settings.out)
    old = _existing(store, settings.overwrite)
    splits, made = checked_sources(settings)
    folder = "" if old is None else next(name for name in ("pack-1", "pack-2") if name != old.folder)
    shards = open_store(join(store.url, folder)) if folder else store
    bad: list[str] = []
    if settings.nodes is None:
        written = {name: _write(shards, name, sources, settings, bad) for name, sources in splits.items()}
    else:
        written = pack_on_nodes(shards, splits, settings, bad)
    refuse_bad(bad, sum(map(len, splits.values())), settings.max_bad_share)
    index = Index(made=made, splits=written, folder=folder)
    write_index(store, index)
    _delete_stale_objects(store, index)
    return index


def check(settings: PackSettings) -> str:
    """Looks for everything that packing would refuse before its first write. Raises InputError; returns a summary."""
    if settings.out:
        _existing(open_store(settings.out), settings.overwrite)
    splits, made = checked_sources(settings)
    counts = ", ".join(f"{name} {len(sources):,}" for name, sources in splits.items())
    compared = "" if made["layout"] in (SAMPLES, "photographs") else f"; compared the sides of up to {COMPARED} pairs"
    return f"nothing wrong found: {counts}{compared}"


def _existing(store: Store, overwrite: bool) -> Index | None:
    """The dataset that is replaced; None if there is none, or if its index is damaged, which makes it useless.

    Raises InputError if there is one that must not be replaced.
    """
    if INDEX not in store.list(INDEX):
        return None
    if not overwrite:
        raise InputError(f"{join(store.url, INDEX)}: a dataset exists; choose another --out, or add --overwrite")
    try:
        return read_index(store)
    except DamagedError:
        return None


def pack_samples(store: Store) -> Index:
    """Packs the sample photographs; replaces an existing dataset."""
    return pack(PackSettings(source=SAMPLES, out=store.url, overwrite=True))


def packed_samples(runs: str) -> str:
    """The URL of the sample photographs as a dataset in the runs' root; packs it at the first call."""
    store = open_store(join(runs, "sample-set"))
    try:
        read_index(store)
    except InputError:
        print(f"no --data and no DEBLUR_DATA: packing the sample photographs into {store.url}", flush=True)
        pack_samples(store)
    return store.url


def _write(store: Store, split: str, sources: Sequence[Source], settings: PackSettings, bad: list[str]) -> Split:
    """Reasons why pairs were left out are appended to `bad`."""
    cut = settings.squares if split == "train" else None  # evaluation is on full frames
    with ThreadPoolExecutor(_THREADS) as pool:
        packed = _in_order(pool, partial(pack_one, cut=cut), sources, bad)
        samples: Iterator[PackedSample] = chain.from_iterable(
            tqdm(packed, total=len(sources), desc=split, unit="pair", disable=None)
        )
        if cut:
            samples = _shuffled(samples, settings.seed)
        return write_split(store, split, samples, settings.shard_mb * 1_000_000)


def _shuffled(samples: Iterable[PackedSample], seed: int) -> Iterator[PackedSample]:
    """The samples in random order, via a temporary folder: otherwise neighbours are squares of the same picture."""
    with tempfile.TemporaryDirectory(prefix="deblur-pack-") as folder:
        spool = open_store(folder)
        waiting = []
        for nth, sample in enumerate(samples):
            spool.put(f"{nth}.blurred", sample.blurred_png)
            spool.put(f"{nth}.sharp", sample.sharp_png)
            waiting.append(replace(sample, blurred_png=b"", sharp_png=b""))
        for nth in np.random.default_rng([seed, len(waiting)]).permutation(len(waiting)):
            yield replace(waiting[nth], blurred_png=spool.get(f"{nth}.blurred"), sharp_png=spool.get(f"{nth}.sharp"))


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Source], list[PackedSample]],
    sources: Iterable[Source],
    bad: list[str],
) -> Iterator[list[PackedSample]]:
    """`pool.map` with bounded look-ahead: a dataset does not fit into memory. InputErrors go to `bad`."""

    def results(left: int) -> Iterator[list[PackedSample]]:
        while len(pending) > left:
            try:
                yield pending.popleft().result()
            except InputError as error:
                bad.append(str(error))

    pending: deque[Future[list[PackedSample]]] = deque()
    for source in sources:
        pending.append(pool.submit(work, source))
        yield from results(left=2 * _THREADS)
    yield from results(left=0)


def _delete_stale_objects(store: Store, index: Index) -> None:
    """Deletes what an earlier or interrupted pack left: parts, and shards and tables that are not of this index."""
    shards = [shard for split in index.splits.values() for shard in split.shards]
    mine = {f"{index.folder}/{name}".lstrip("/") for shard in shards for name in (shard.name, shard.table)}
    store.delete(*(key for key in store.list("") if _OURS.fullmatch(key) and key not in mine))


def summary(index: Index) -> str:
    """What was packed, as text for the terminal."""
    lines = [
        f"{name}: {split.num_samples:,} samples in {len(split.shards)} shards, "
        f"{sum(shard.size_bytes for shard in split.shards) / 1e6:,.1f} MB"
        for name, split in index.splits.items()
    ]
    if index.made["layout"] == "gopro" and not index.made["cut"]:
        counts = {name: split.num_samples for name, split in index.splits.items()}
        found = {"train": counts["train"] + counts.get("validation", 0), "test": counts.get("test", 0)}
        complete = "complete" if found == GOPRO_COUNTS else "NOT the complete"
        expected = ", ".join(f"{count:,} {name}" for name, count in GOPRO_COUNTS.items())
        lines.append(f"{complete} GOPRO_Large, which has {expected} pairs")
    return "\n".join([*lines, f"digest {index.digest}"])
