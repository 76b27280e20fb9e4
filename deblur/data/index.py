"""The index of a dataset: index.json with a row for each shard, and beside each shard a table of its samples.

A rank reads index.json and the tables of those shards from which it needs samples. index.json is written last: without
it there is no dataset. Version 1 of the format, which had all samples in index.json, is still read.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from cluster.errors import DamagedError, InputError, NotFound
from cluster.storage import Store, join

INDEX = "index.json"
VERSION = 2
_SHARD_NAME = re.compile(r"[\w-]+/[\w-]+\.tar")  # no path outside the dataset's root, and no other scheme
_FOLDER = re.compile(r"(pack-\d+)?")
_KEY = re.compile(r"[^./\n]+")


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
    num_samples: int
    table_sha256: str
    """Of the file with the shard's samples; "" in version 1."""

    @property
    def table(self) -> str:
        """train/000000.npz, the file with the shard's samples."""
        return self.name.removesuffix(".tar") + ".npz"


@dataclass(frozen=True, kw_only=True)
class Split:
    shards: tuple[Shard, ...]
    smallest: tuple[int, int]
    """(height, width), each the minimum over all pictures."""

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def starts(self) -> list[int]:
        """Number of samples before each shard."""
        return list(accumulate((shard.num_samples for shard in self.shards[:-1]), initial=0))


@dataclass(frozen=True, kw_only=True)
class Index:
    made: Mapping[str, Any]
    """How the dataset was made."""
    splits: Mapping[str, Split]
    folder: str = ""
    """Of the shards, below the dataset's root: not the root itself where a dataset replaced another."""
    tables: Mapping[str, Sequence[Sample]] = field(default_factory=dict, repr=False)
    """Samples by the name of their shard, of version 1."""
    digest_1: str = ""
    """The digest of version 1."""

    @property
    def digest(self) -> str:
        """sha256 of how and what: datasets with equal digests have the same samples in the same order."""
        splits = {name: asdict(split) for name, split in self.splits.items()}
        return self.digest_1 or _sha256({"made": self.made, "splits": splits})


def write_index(store: Store, index: Index) -> None:
    """Commits the dataset: call it after all shards and tables were written."""
    splits = {name: asdict(split) for name, split in index.splits.items()}
    content = {"version": VERSION, "digest": index.digest, "made": index.made, "splits": splits, "folder": index.folder}
    store.put(INDEX, json.dumps(content, indent=1).encode())


def read_index(store: Store) -> Index:
    """The index of a dataset. Raises NotFound, InputError for another format version, DamagedError if unreadable."""
    place = join(store.url, INDEX)
    try:
        raw = json.loads(store.get(INDEX))
        if raw["version"] not in (1, VERSION):
            raise InputError(f"{place}: format version {raw['version']}, expected {VERSION}; pack it again")
        index = _version_1(raw) if raw["version"] == 1 else _index(raw)
    except NotFound:
        raise NotFound(
            f"{place}: not found, so there is no dataset; make one with python -m deblur.pack SOURCE --out "
            f"{store.url}, or correct --data (DEBLUR_DATA)"
        ) from None
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{place}: unreadable ({error!r}); pack the dataset again") from error
    if index.digest != raw.get("digest"):
        raise DamagedError(f"{place}: the digest differs from the content's; pack the dataset again")
    return index


def encode_table(samples: Sequence[Sample]) -> bytes:
    """The file of a shard's samples: an npz without compression, so that equal samples give equal bytes."""
    keys = np.frombuffer("\n".join(sample.key for sample in samples).encode(), np.uint8)
    places = np.array([(sample.offset, sample.length, sample.crc32) for sample in samples], np.uint64)
    out = io.BytesIO()
    np.savez(out, keys=keys, places=places)
    return out.getvalue()


def read_table(store: Store, shard: Shard) -> tuple[Sample, ...]:
    """The samples of a shard. Raises DamagedError if the file is not the one that the index has, twice."""
    data = store.get(shard.table)
    if sha256(data) != shard.table_sha256:
        data = store.get(shard.table)  # bytes may be wrong on the way
    place = f"{store.url}/{shard.table}"
    if sha256(data) != shard.table_sha256:
        raise DamagedError(f"{place}: differs from the index; pack the dataset again")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as table:
            keys, places = table["keys"].tobytes().decode().split("\n"), table["places"].tolist()
    except Exception as error:  # a damaged zip raises a dozen kinds
        raise DamagedError(f"{place}: unreadable ({error!r}); pack the dataset again") from error
    if len(keys) != shard.num_samples or not all(map(_KEY.fullmatch, keys)):
        raise DamagedError(f"{place}: has {len(keys)} keys, expected {shard.num_samples} without '.' and '/'")
    return tuple(
        Sample(key=key, offset=offset, length=length, crc32=crc32)
        for key, (offset, length, crc32) in zip(keys, places, strict=True)
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sha256(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())


def _index(raw: Mapping[str, Any]) -> Index:
    splits = {
        name: Split(shards=tuple(Shard(**shard) for shard in split["shards"]), smallest=tuple(split["smallest"]))
        for name, split in raw["splits"].items()
    }
    index = Index(made=raw["made"], splits=splits, folder=raw["folder"])
    _check_names(index)
    return index


def _version_1(raw: Mapping[str, Any]) -> Index:
    splits, tables = {}, {}
    for name, split in raw["splits"].items():
        shards = []
        for shard in split["shards"]:
            tables[shard["name"]] = samples = tuple(Sample(**sample) for sample in shard["samples"])
            row = {"size_bytes": shard["size_bytes"], "num_samples": len(samples), "table_sha256": ""}
            shards.append(Shard(name=shard["name"], **row))
        splits[name] = Split(shards=tuple(shards), smallest=tuple(split["smallest"]))
    digest = _sha256({"made": raw["made"], "splits": raw["splits"]})
    index = Index(made=raw["made"], splits=splits, tables=tables, digest_1=digest)
    _check_names(index)
    return index


def _check_names(index: Index) -> None:
    """Raises ValueError for a name that would lead outside the dataset."""
    if not _FOLDER.fullmatch(index.folder):
        raise ValueError(f"{index.folder!r} is not a valid folder")
    for split in index.splits.values():
        for shard in split.shards:
            keys = (sample.key for sample in index.tables.get(shard.name, ()))
            if not _SHARD_NAME.fullmatch(shard.name) or not all(map(_KEY.fullmatch, keys)):
                raise ValueError(f"{shard.name!r} is not a valid shard name, or a sample's key has '.' or '/'")
