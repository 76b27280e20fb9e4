"""Tar shards of pairs. A sample is KEY.blurred.png, KEY.json and KEY.sharp.png.

They are adjacent in the tar, so that one ranged read fetches a sample; plain webdataset can read the shards, too.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.errors import DamagedError
from cluster.storage import Store
from deblur.data.index import Sample, Shard, Split, encode_table, sha256

_T = TypeVar("_T")
_MEMBERS = ("blurred.png", "json", "sharp.png")


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
    """Writes a split in shards of about `shard_bytes`, each with the table of its samples; deterministic."""
    shards, sizes = [], set[tuple[int, int]]()
    for nth, group in enumerate(groups(samples, shard_bytes, _png_bytes)):
        shards.append(write_shard(store, shard_name(split, nth), group))
        sizes |= {sample.size for sample in group}
    return Split(shards=tuple(shards), smallest=smallest_of(sizes))


def shard_name(split: str, nth: int) -> str:
    return f"{split}/{nth:06d}.tar"


def write_shard(store: Store, name: str, samples: list[PackedSample]) -> Shard:
    """Writes a shard and its table."""
    data, placed = _tar(samples)
    table = encode_table(placed)
    shard = Shard(name=name, size_bytes=len(data), num_samples=len(placed), table_sha256=sha256(table))
    store.put(name, data)
    store.put(shard.table, table)
    return shard


def smallest_of(sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
    """(height, width), each the minimum; (0, 0) without any."""
    heights, widths = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    return min(heights), min(widths)


def groups(items: Iterable[_T], shard_bytes: int, size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Consecutive items of at most `shard_bytes` in total, or one larger item: those of one shard each."""
    group: list[_T] = []
    size = 0
    for item in items:
        length = size_of(item)
        if group and size + length > shard_bytes:
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    if group:
        yield group


def _png_bytes(sample: PackedSample) -> int:
    return len(sample.blurred_png) + len(sample.sharp_png)


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
