"""Tar shards of pairs, and the index that says where in them each sample lies.

A dataset is a root (folder or s3://bucket/prefix) with train/000000.tar, ..., validation/..., test/... and index.json,
which is written last: without it there is no dataset. A sample is KEY.blurred.png, KEY.json and KEY.sharp.png, one
after another, so that a ranged read fetches it whole; plain webdataset reads the same shards.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.errors import DamagedError, InputError, NotFound
from cluster.storage import Store, join

INDEX = "index.json"
VERSION = 1
_MEMBERS = ("blurred.png", "json", "sharp.png")
_SHARD_NAME = re.compile(r"[\w-]+/[\w-]+\.tar")  # no way out of the dataset's root, no other scheme
_KEY = re.compile(r"[^./]+")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The bytes [offset, offset + length) of a shard: the sample's members with their headers and padding."""

    key: str
    offset: int
    length: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    name: str
    """train/000000.tar"""
    size_bytes: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    shards: tuple[Shard, ...]
    smallest: tuple[int, int]
    """(height, width): no picture is lower, and none narrower."""

    @property
    def num_samples(self) -> int:
        return sum(len(shard.samples) for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Index:
    made: Mapping[str, Any]
    """How the dataset was made."""
    splits: Mapping[str, Split]

    @property
    def digest(self) -> str:
        """sha256 of everything above: two datasets of equal digest hold the same samples in the same order."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PackedSample:
    """A sample on its way into a shard. The key has neither a dot nor a slash."""

    key: str
    blurred_png: bytes
    sharp_png: bytes
    meta: Mapping[str, Any]
    size: tuple[int, int]
    """(height, width)"""


def write_split(store: Store, split: str, samples: Iterable[PackedSample], shard_bytes: int) -> Split:
    """Writes the shards of a split, each put whole when `shard_bytes` are reached; same samples, same bytes."""
    shards: list[Shard] = []
    smallest: tuple[int, int] | None = None
    for group in _groups(samples, shard_bytes):
        name = f"{split}/{len(shards):06d}.tar"
        data, placed = _tar(group)
        store.put(name, data)
        shards.append(Shard(name=name, size_bytes=len(data), samples=placed))
        sizes = [sample.size for sample in group] + ([smallest] if smallest else [])
        smallest = (min(height for height, _ in sizes), min(width for _, width in sizes))
    return Split(shards=tuple(shards), smallest=smallest or (0, 0))


def write_index(store: Store, index: Index) -> None:
    """Makes the dataset one: to be called when all shards are written."""
    store.put(INDEX, json.dumps({"version": VERSION, "digest": index.digest, **asdict(index)}, indent=1).encode())


def read_index(store: Store) -> Index:
    """The index of a dataset. Raises InputError where there is none that fits, DamagedError if it is unreadable."""
    place = join(store.url, INDEX)
    try:
        raw = json.loads(store.get(INDEX))
        if raw["version"] != VERSION:
            raise InputError(f"{place}: format version {raw['version']}, this program reads {VERSION}; pack it again")
        index = Index(made=raw["made"], splits={name: _split(split) for name, split in raw["splits"].items()})
    except NotFound:
        raise NotFound(
            f"{place}: missing, so there is no dataset here; make one with python -m deblur.pack SOURCE --out "
            f"{store.url}, or mend --data (DEBLUR_DATA)"
        ) from None
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{place}: unreadable ({error!r}); pack the dataset again") from error
    if index.digest != raw["digest"]:
        raise DamagedError(f"{place}: its digest does not fit its content; pack the dataset again")
    return index


def unpack(data: bytes | memoryview, shard_name: str, sample: Sample) -> tuple[bytes, bytes, dict[str, Any]]:
    """(blurred PNG, sharp PNG, meta) of a sample's slice of a shard.

    Raises DamagedError, naming shard and key, where the bytes are not those of the index, or hold anything else than
    the three members.
    """
    place = f"{shard_name}: {sample.key}"
    if len(data) != sample.length or zlib.crc32(data) != sample.crc32:
        raise DamagedError(f"{place}: its bytes are not those of the index (crc32); was the shard replaced?")
    try:
        blurred, meta, sharp = _members(data, place, sample.key)
        told = json.loads(meta)
    except DamagedError:
        raise
    except Exception as error:
        raise DamagedError(f"{place}: not a slice of a tar ({error})") from error
    if not isinstance(told, dict):
        raise DamagedError(f"{place}: its json is no object")
    return blurred, sharp, told


def _members(data: bytes | memoryview, place: str, key: str) -> list[bytes]:
    """The contents of `_MEMBERS`. Raises DamagedError unless a slice holds them as plain files and nothing else."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = sorted(tar.getmembers(), key=lambda member: member.name)
    names = [member.name for member in members]
    plain = all(m.type == tarfile.REGTYPE and not m.issparse() for m in members)
    contents = [bytes(data[m.offset_data : m.offset_data + m.size]) for m in members]
    whole = all(len(content) == m.size for content, m in zip(contents, members, strict=True))
    if not plain or not whole or names != [f"{key}.{name}" for name in _MEMBERS]:
        raise DamagedError(f"{place}: must hold {', '.join(_MEMBERS)} as files and nothing else, but holds {names}")
    return contents


def _groups(samples: Iterable[PackedSample], shard_bytes: int) -> Iterator[list[PackedSample]]:
    """Neighbours whose members have about `shard_bytes` together; a larger sample is a shard of its own."""
    group: list[PackedSample] = []
    size = 0
    for sample in samples:
        length = len(sample.blurred_png) + len(sample.sharp_png)
        if group and size + length > shard_bytes:
            yield group
            group, size = [], 0
        group.append(sample)
        size += length
    if group:
        yield group


def _tar(samples: list[PackedSample]) -> tuple[bytes, tuple[Sample, ...]]:
    """The bytes of a tar without anything of the hour or the user, and where its samples lie."""
    from webdataset.writer import TarWriter  # reading needs it not, and a bare machine has none

    file = io.BytesIO()
    spans: list[tuple[str, int, int]] = []
    with TarWriter(file, encoder=False, mtime=0, user="", group="") as writer:
        for sample in samples:
            if "." in sample.key or "/" in sample.key:
                raise ValueError(f"key {sample.key!r} has a dot or a slash")
            start = writer.tarstream.offset
            meta = json.dumps(sample.meta, sort_keys=True).encode()
            members = {"blurred.png": sample.blurred_png, "json": meta, "sharp.png": sample.sharp_png}
            writer.write({"__key__": sample.key, **members})
            spans.append((sample.key, start, writer.tarstream.offset))
    data = file.getvalue()
    placed = (
        Sample(key=key, offset=start, length=end - start, crc32=zlib.crc32(data[start:end]))
        for key, start, end in spans
    )
    return data, tuple(placed)


def _split(raw: Mapping[str, Any]) -> Split:
    shards = tuple(
        Shard(
            name=shard["name"],
            size_bytes=shard["size_bytes"],
            samples=tuple(Sample(**sample) for sample in shard["samples"]),
        )
        for shard in raw["shards"]
    )
    for shard in shards:
        if not _SHARD_NAME.fullmatch(shard.name) or not all(_KEY.fullmatch(sample.key) for sample in shard.samples):
            raise ValueError(f"{shard.name!r} is no name of a shard, or one of its samples has a key with '.' or '/'")
    return Split(shards=shards, smallest=tuple(raw["smallest"]))
