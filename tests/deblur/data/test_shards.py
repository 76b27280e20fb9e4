"""Shards against Python's tarfile and plain webdataset; damaged and foreign shards are refused by name."""

import gzip
import io
import pickle
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from cluster.errors import DamagedError
from cluster.storage import open_store
from deblur.data import pictures
from deblur.data.index import Sample
from deblur.data.shards import PackedSample, unpack, write_split
from tests.datasets import samples, write_dataset


def shard_bytes(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def test_offsets_and_lengths_are_those_that_tarfile_finds(tmp_path: Path) -> None:
    dataset = write_dataset(open_store(tmp_path), train=9)
    for shard in dataset.index.splits["train"].shards:
        with tarfile.open(tmp_path / shard.name) as tar:
            members = tar.getmembers()
        found = {member.name.partition(".")[0]: [] for member in members}
        for member in members:
            found[member.name.partition(".")[0]].append(member)
        assert list(found) == [sample.key for sample in dataset.samples(shard)]
        for sample in dataset.samples(shard):
            first, last = found[sample.key][0], found[sample.key][-1]
            assert sample.offset == first.offset
            assert sample.offset + sample.length == last.offset_data + -(-last.size // 512) * 512
            data = shard_bytes(tmp_path, shard.name)[sample.offset : sample.offset + sample.length]
            assert zlib.crc32(data) == sample.crc32


def test_plain_webdataset_reads_the_same_pixels(tmp_path: Path) -> None:
    index = write_dataset(open_store(tmp_path), train=9).index
    urls = [str(tmp_path / shard.name) for shard in index.splits["train"].shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    expected = list(samples("t", 9, 48, 56))
    assert [sample["__key__"] for sample in found] == [sample.key for sample in expected]
    for sample, packed in zip(found, expected, strict=True):
        assert np.array_equal(pictures.decode(sample["sharp.png"], ""), pictures.decode(packed.sharp_png, ""))
        assert sample["blurred.png"] == packed.blurred_png


def test_the_same_samples_give_the_same_bytes_and_digest(tmp_path: Path) -> None:
    one, two = (write_dataset(open_store(tmp_path / name), train=9).index for name in "ab")
    assert one.digest == two.digest
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert files
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_another_sample_gives_another_digest(tmp_path: Path) -> None:
    one, two = (write_dataset(open_store(tmp_path / str(n)), train=n).index for n in (9, 10))
    assert one.digest != two.digest


def test_shards_do_not_exceed_their_size_unless_one_sample_does(tmp_path: Path) -> None:
    everything = list(samples("t", 8, 48, 56))
    length = max(len(s.blurred_png) + len(s.sharp_png) for s in everything)
    split = write_split(open_store(tmp_path), "train", everything, 3 * length)
    assert all(3 <= shard.num_samples <= 4 for shard in split.shards[:-1])
    split = write_split(open_store(tmp_path), "train", everything, 10)
    assert [shard.num_samples for shard in split.shards] == [1] * 8
    assert split.smallest == (48, 56)


@pytest.mark.parametrize("key", ["a.b", "a/b"])
def test_keys_that_a_tar_reader_would_split_are_refused(tmp_path: Path, key: str) -> None:
    sample = PackedSample(key=key, blurred_png=b"", sharp_png=b"", meta={}, size=(1, 1))
    with pytest.raises(ValueError, match="dot or a slash"):
        write_split(open_store(tmp_path), "train", [sample], 100)


def packed(tmp_path: Path) -> tuple[bytes, str, Sample]:
    dataset = write_dataset(open_store(tmp_path), train=3)
    shard = dataset.index.splits["train"].shards[0]
    sample = dataset.samples(shard)[1]
    return shard_bytes(tmp_path, shard.name)[sample.offset : sample.offset + sample.length], shard.name, sample


def test_a_slice_unpacks_to_what_was_packed(tmp_path: Path) -> None:
    expected = list(samples("t", 3, 48, 56))[1]
    assert unpack(*packed(tmp_path)) == (expected.blurred_png, expected.sharp_png, {})


def test_one_wrong_byte_is_refused_with_shard_and_key(tmp_path: Path) -> None:
    data, shard, sample = packed(tmp_path)
    damaged = bytearray(data)
    damaged[700] ^= 1
    for wrong in (bytes(damaged), data[:-1], b""):
        with pytest.raises(DamagedError, match=rf"{shard}: {sample.key}.*crc32"):
            unpack(wrong, shard, sample)


def tar_of(members: list[tuple[str, bytes, bytes]]) -> tuple[bytes, Sample]:
    """A tar of (name, type, data) with a matching index entry."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w|") as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    data = file.getvalue()
    return data, Sample(key="k", offset=0, length=len(data), crc32=zlib.crc32(data))


class Evil:
    def __reduce__(self) -> tuple:
        return (Path("executed").touch, ())


GOOD = [
    ("k.blurred.png", tarfile.REGTYPE, b"b"),
    ("k.json", tarfile.REGTYPE, b"{}"),
    ("k.sharp.png", tarfile.REGTYPE, b"s"),
]


@pytest.mark.parametrize(
    "members",
    [
        GOOD[:2],
        [*GOOD, ("k.pyd", tarfile.REGTYPE, pickle.dumps(Evil()))],
        [*GOOD, ("k.pickle", tarfile.REGTYPE, pickle.dumps(Evil()))],
        [*GOOD, ("../k.sharp.png", tarfile.REGTYPE, b"x")],
        [("/k.blurred.png", tarfile.REGTYPE, b"b"), *GOOD[1:]],
        [GOOD[0], GOOD[1], ("k.sharp.png", tarfile.SYMTYPE, b"")],
        [*GOOD, ("other.sharp.png", tarfile.REGTYPE, b"x")],
        [*GOOD, GOOD[2]],
        [*GOOD, ("k.link", tarfile.SYMTYPE, b"")],
        [*GOOD, ("folder", tarfile.DIRTYPE, b"")],
        [*GOOD, ("__meta__", tarfile.REGTYPE, b"x")],
        [*GOOD, ("k", tarfile.REGTYPE, b"x")],
        [GOOD[0], ("k.json", tarfile.REGTYPE, b"{"), GOOD[2]],
        [GOOD[0], ("k.json", tarfile.REGTYPE, b"[]"), GOOD[2]],
    ],
    ids=[
        "missing",
        "pyd",
        "pickle",
        "parent",
        "absolute",
        "link",
        "other",
        "twice",
        "extra-link",
        "folder",
        "meta",
        "no-suffix",
        "half-json",
        "list-json",
    ],
)
def test_anything_but_the_three_members_is_refused_and_nothing_is_executed(
    members: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, sample = tar_of(GOOD)
    assert unpack(data, "s.tar", sample) == (b"b", b"s", {})
    data, sample = tar_of(members)
    with pytest.raises(DamagedError, match=r"s\.tar: k"):
        unpack(data, "s.tar", sample)
    assert not (tmp_path / "executed").exists()


def test_compressed_tars_are_refused() -> None:
    data = gzip.compress(tar_of([*GOOD[:2], ("k.sharp.png", tarfile.REGTYPE, bytes(1 << 26))])[0])
    sample = Sample(key="k", offset=0, length=len(data), crc32=zlib.crc32(data))
    with pytest.raises(DamagedError, match=r"s\.tar: k.*not a slice of a tar"):
        unpack(data, "s.tar", sample)


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    data = b"<html>503 Slow Down</html>" * 100
    sample = Sample(key="k", offset=0, length=len(data), crc32=zlib.crc32(data))
    with pytest.raises(DamagedError, match=r"s\.tar: k.*not a slice of a tar"):
        unpack(data, "s.tar", sample)


def test_the_smallest_size_is_over_all_pictures(tmp_path: Path) -> None:
    several = [
        replace(s, size=size) for s, size in zip(samples("t", 3, 48, 56), [(9, 40), (50, 8), (30, 30)], strict=True)
    ]
    assert write_split(open_store(tmp_path), "train", several, 10).smallest == (9, 8)
