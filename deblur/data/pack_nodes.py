"""Packing on the nodes of a Ray cluster, with the bytes that one machine would write.

Each node packs chunks of the pairs into parts; when all are there, each puts shards together from the parts. A part is
NAME.pngs, the PNGs of its samples one after the other, and NAME.json, their places, which is written last. The same
command again uses the parts that exist, and packing deletes them at its end.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cluster.errors import InputError, NotFound
from cluster.on_ray.placement import Placement
from cluster.storage import Store, absolute, join, open_store
from deblur.data.files import is_archive
from deblur.data.index import Shard, Split, sha256
from deblur.data.pack_one import pack_one
from deblur.data.pack_settings import PackSettings
from deblur.data.shards import PackedSample, groups, shard_name, smallest_of, write_shard
from deblur.data.sources import Source

PARTS = "parts"
PAIRS_PER_CHUNK = 16
_THREADS = 8  # that fetch samples for a shard


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some pairs of a split, packed by one task."""

    name: str
    """train/000000"""
    sources: tuple[Source, ...]
    cut: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A packed sample whose PNGs are in a part, the blurred one at `offset`, then the sharp one."""

    part: str
    offset: int
    blurred_bytes: int
    sharp_bytes: int
    key: str
    meta: Mapping[str, Any]
    size: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        return self.blurred_bytes + self.sharp_bytes


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to be put together."""

    name: str
    samples: list[Placed]


def pack_on_nodes(
    shards: Store, splits: Mapping[str, Sequence[Source]], settings: PackSettings, bad: list[str]
) -> dict[str, Split]:
    """Writes the shards of each split; reasons why pairs were left out are appended to `bad`."""
    _check_access(splits, settings)
    parts = join(settings.out, PARTS, _identity(splits, settings))
    jobs: list[ShardJob] = []
    sizes = {}
    packed = _pack_chunks(absolute(parts), splits, settings, bad)
    for split, samples in packed.items():
        sizes[split] = {sample.size for sample in samples}
        grouped = groups(samples, settings.shard_mb * 1_000_000, lambda sample: sample.num_bytes)
        jobs += [ShardJob(name=shard_name(split, nth), samples=group) for nth, group in enumerate(grouped)]
    work = partial(_assembler, absolute(parts), absolute(shards.url))
    after_loss = _placement(settings, min_nodes=1)  # nodes that packing chunks lost are not waited for
    written: dict[str, Shard] = {job.name: shard for job, shard in _run(work, jobs, after_loss, "shard")}
    return {
        split: Split(
            shards=tuple(written[job.name] for job in jobs if job.name.startswith(f"{split}/")),
            smallest=smallest_of(sizes[split]),
        )
        for split in splits
    }


def _check_access(splits: Mapping[str, Sequence[Source]], settings: PackSettings) -> None:
    """Raises InputError if a node cannot read the first picture, or cannot write."""
    from cluster.on_ray.launch import check_nodes_can_access  # needs Ray

    first = next(source for sources in splits.values() for source in sources)
    for file in {file.root: file for file in first.files}.values():
        place = file.root if is_archive(file.root) else str(file)
        check_nodes_can_access(place, absolute(settings.out), _placement(settings), "the pictures and --out")


def _placement(settings: PackSettings, min_nodes: int | None = None) -> Placement:
    assert settings.nodes is not None
    return Placement(nodes=settings.nodes, min_nodes=min_nodes, wait_s=settings.wait_s)


def _identity(splits: Mapping[str, Sequence[Source]], settings: PackSettings) -> str:
    """Of the parts: those of other settings or pairs are not used."""
    files = {name: [list(map(str, source.files)) for source in sources] for name, sources in splits.items()}
    same = replace(settings, nodes=None, wait_s=0, shard_mb=1, overwrite=False, max_bad_share=0)
    return sha256(json.dumps([asdict(same), files], default=str).encode())[:16]


def _pack_chunks(
    parts: str, splits: Mapping[str, Sequence[Source]], settings: PackSettings, bad: list[str]
) -> dict[str, list[Placed]]:
    """The samples of each split in the order of one machine."""
    chunks = [
        Chunk(
            name=f"{split}/{first // PAIRS_PER_CHUNK:06d}",
            sources=tuple(sources[first : first + PAIRS_PER_CHUNK]),
            cut=settings.squares if split == "train" else None,
        )
        for split, sources in splits.items()
        for first in range(0, len(sources), PAIRS_PER_CHUNK)
    ]
    found = {
        chunk.name: result for chunk, result in _run(partial(_packer, parts), chunks, _placement(settings), "chunk")
    }
    packed: dict[str, list[Placed]] = {split: [] for split in splits}
    for chunk in chunks:
        samples, reasons = found[chunk.name]
        packed[chunk.name.partition("/")[0]] += samples
        bad += reasons
    if settings.squares:  # otherwise neighbours are squares of the same picture
        train = packed["train"]
        packed["train"] = [train[i] for i in np.random.default_rng([settings.seed, len(train)]).permutation(len(train))]
    return packed


def _run(
    make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], placement: Placement, unit: str
) -> Iterator[tuple[Any, Any]]:
    """Each item with its result, in any order. Raises InputError for an item that could not be worked on."""
    from cluster.on_ray.tasks import for_each  # needs Ray

    outcomes = for_each(make, items, placement)
    for item, result in tqdm(outcomes, total=len(items), unit=unit, disable=None):
        if isinstance(result, Exception):
            raise InputError(f"{item.name}: its worker process died repeatedly ({result}); give nodes more memory")
        yield item, result


# ---- on the nodes


def _packer(parts: str) -> Callable[[Chunk], tuple[list[Placed], list[str]]]:
    return partial(pack_chunk, open_store(parts))


def pack_chunk(parts: Store, chunk: Chunk) -> tuple[list[Placed], list[str]]:
    """The samples of a chunk, and why pairs were left out; packs it unless that was done before."""
    try:
        content = json.loads(parts.get(f"{chunk.name}.json"))
    except NotFound:
        content = _pack(parts, chunk)
    samples = [Placed(**row | {"size": tuple(row["size"])}) for row in content["samples"]]
    return samples, content["bad"]


def _pack(parts: Store, chunk: Chunk) -> dict[str, Any]:
    pngs, rows, bad = bytearray(), list[dict[str, Any]](), list[str]()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        outcomes = list(pool.map(partial(_samples_or_reason, cut=chunk.cut), chunk.sources))
    for outcome in outcomes:
        if isinstance(outcome, str):
            bad.append(outcome)
            continue
        for sample in outcome:
            placed = Placed(
                part=f"{chunk.name}.pngs",
                offset=len(pngs),
                blurred_bytes=len(sample.blurred_png),
                sharp_bytes=len(sample.sharp_png),
                key=sample.key,
                meta=sample.meta,
                size=sample.size,
            )
            rows.append(asdict(placed))
            pngs += sample.blurred_png + sample.sharp_png
    parts.put(f"{chunk.name}.pngs", bytes(pngs))
    content = {"samples": rows, "bad": bad}
    if not bad:  # or packed again next time, when pictures may have been repaired
        parts.put(f"{chunk.name}.json", json.dumps(content).encode())
    return content


def _samples_or_reason(source: Source, cut: tuple[int, int] | None) -> list[PackedSample] | str:
    try:
        return pack_one(source, cut)
    except InputError as error:
        return str(error)


def _assembler(parts: str, shards: str) -> Callable[[ShardJob], Shard]:
    return partial(assemble, open_store(parts), open_store(shards))


def assemble(parts: Store, shards: Store, job: ShardJob) -> Shard:
    """Writes a shard from the parts of its samples."""
    with ThreadPoolExecutor(_THREADS) as pool:
        samples = list(pool.map(partial(_read, parts), job.samples))
    return write_shard(shards, job.name, samples)


def _read(parts: Store, placed: Placed) -> PackedSample:
    data = parts.get(placed.part, placed.offset, placed.offset + placed.num_bytes)
    blurred, sharp = data[: placed.blurred_bytes], data[placed.blurred_bytes :]
    return PackedSample(key=placed.key, blurred_png=blurred, sharp_png=sharp, meta=placed.meta, size=placed.size)
