"""Tar shards of pairs, and the index with the byte range of each sample.

A dataset is a root (folder or s3://bucket/prefix) with train/000000.tar, ..., validation/..., test/... and index.json,
which is written last: without it there is no dataset. A sample is KEY.blurred.png, KEY.json and KEY.sharp.png, adjacent
in the tar, so that one ranged read fetches it; plain webdataset can read the shards, too.
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
_SHARD_NAME = re.compile(r"[\w-]+/[\w-]+\.tar")  # no path outside the dataset's root, and no other scheme
_FOLDER = re.compile(r"(pack-\d+)?")
_KEY = re.compile(r"[^./]+")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The bytes [offset, offset + length) of a shard: the sample's tar members with headers and padding."""

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
    """(height, width), each the minimum over all pictures."""

    @property
    def num_samples(self) -> int:
        return sum(len(shard.samples) for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Index:
    made: Mapping[str, Any]
    """How the dataset was made."""
    splits: Mapping[str, Split]
    folder: str = ""
    """Of the shards, below the dataset's root: not the root itself where a dataset replaced another."""

    @property
    def digest(self) -> str:
        """sha256 of how and what: datasets with equal digests have the same samples in the same order."""
        content = asdict(self)
        del content["folder"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PackedSample:
    """A sample to be written into a shard. The key has neither dots nor slashes."""

    key: str
    blurred_png: bytes
    sharp_png: bytes
    meta: Mapping[str, Any]
    size: tuple[int, int]
    """(height, width)"""


def write_split(store: Store, split: str, samples: Iterable[PackedSample], shard_bytes: int) -> Split:
    """Writes a split in shards of about `shard_bytes`; deterministic in the samples."""
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
    """Commits the dataset: call it after all shards were written."""
    store.put(INDEX, json.dumps({"version": VERSION, "digest": index.digest, **asdict(index)}, indent=1).encode())


def read_index(store: Store) -> Index:
    """The index of a dataset. Raises NotFound, InputError for another format version, DamagedError if unreadable."""
    place = join(store.url, INDEX)
    try:
        raw = json.loads(store.get(INDEX))
        if raw["version"] != VERSION:
            raise InputError(f"{place}: format version {raw['version']}, expected {VERSION}; pack it again")
        splits = {name: _split(split) for name, split in raw["splits"].items()}
        index = Index(made=raw["made"], splits=splits, folder=raw.get("folder", ""))
        if not _FOLDER.fullmatch(index.folder):
            raise ValueError(f"{index.folder!r} is not a valid folder")
    except NotFound:
        raise NotFound(
            f"{place}: not found, so there is no dataset; make one with python -m deblur.pack SOURCE --out "
            f"{store.url}, or correct --data (DEBLUR_DATA)"
        ) from None
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{place}: unreadable ({error!r}); pack the dataset again") from error
    if index.digest != raw["digest"]:
        raise DamagedError(f"{place}: the digest differs from the content's; pack the dataset again")
    return index


def unpack(data: bytes | memoryview, shard_name: str, sample: Sample) -> tuple[bytes, bytes, dict[str, Any]]:
    """(blurred PNG, sharp PNG, meta) of a sample's slice of a shard.

    Raises DamagedError naming shard and key if the bytes differ from the index, or hold other than the three members.
    """
    place = f"{shard_name}: {sample.key}"
    if len(data) != sample.length or zlib.crc32(data) != sample.crc32:
        raise DamagedError(f"{place}: crc32 or length differ from the index; was the shard replaced?")
    try:
        blurred, meta, sharp = _members(data, place, sample.key)
        described = json.loads(meta)
    except DamagedError:
        raise
    except Exception as error:
        raise DamagedError(f"{place}: not a slice of a tar ({error})") from error
    if not isinstance(described, dict):
        raise DamagedError(f"{place}: its json is not an object")
    return blurred, sharp, described


def _members(data: bytes | memoryview, place: str, key: str) -> list[bytes]:
    """The contents of `_MEMBERS`. Raises DamagedError unless the slice holds exactly these, as regular files."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = sorted(tar.getmembers(), key=lambda member: member.name)
    names = [member.name for member in members]
    plain = all(m.type == tarfile.REGTYPE and not m.issparse() for m in members)
    contents = [bytes(data[m.offset_data : m.offset_data + m.size]) for m in members]
    whole = all(len(content) == m.size for content, m in zip(contents, members, strict=True))
    if not plain or not whole or names != [f"{key}.{name}" for name in _MEMBERS]:
        raise DamagedError(f"{place}: expected exactly {', '.join(_MEMBERS)} as regular files, found {names}")
    return contents


def _groups(samples: Iterable[PackedSample], shard_bytes: int) -> Iterator[list[PackedSample]]:
    """Consecutive samples of at most `shard_bytes` in total, or one larger sample."""
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
    """The bytes of a tar, without times and users, and the byte range of each sample."""
    from webdataset.writer import TarWriter  # not needed for reading, and not installed everywhere

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
            raise ValueError(f"{shard.name!r} is not a valid shard name, or a sample's key has '.' or '/'")
    return Split(shards=shards, smallest=tuple(raw["smallest"]))
