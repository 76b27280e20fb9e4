"""Feeds damaged and hostile files and requests to whatever reads them, and counts what is not a plain refusal.

python -m benchmarks.hostile --inputs 10000

Each input is a valid one, mutated by a seed. It may be accepted, or refused by an error of cluster/errors.py (by a
status below 500 in the service). Everything else is counted: another exception, a process that dies, more than MAX_MB
of memory, more than MAX_S.
"""

import asyncio
import io
import json
import logging
import multiprocessing
import random
import resource
import signal
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import tyro

from benchmarks.machine import machine
from benchmarks.mutation import mutated, mutated_json
from cluster.errors import FINAL, InputError
from cluster.exporter import Metrics
from cluster.storage import open_store
from cluster.storage.checkpoints import Checkpoints
from deblur.app.metrics import SERVICE
from deblur.app.web import Web
from deblur.config import recipes
from deblur.config.recipes import DataRecipe, GeneratorRecipe, Recipe
from deblur.data import pictures
from deblur.data.index import INDEX, Index, Sample, Shard, encode_table, read_index, read_table, sha256, write_index
from deblur.data.pair_lists import read_table as read_pairs
from deblur.data.photographs import read_photograph
from deblur.data.shards import PackedSample, unpack, write_split
from deblur.models.build import build_generator
from deblur.models.trained import build_model
from deblur.models.weights import encode_generator, split_header
from deblur.training.run import Origin, Run

MAX_S = 20.0
MAX_MB = 1000  # a picture may have MAX_PIXELS, which take as much
_MAX_PIXELS = 4_000_000
_CHUNK = 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    inputs: int = 10_000
    """Number of inputs, spread evenly over the targets."""
    targets: tuple[str, ...] = ()
    """Some of the targets; default: all."""
    first_seed: int = 0
    """Seed of each target's first input."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that was neither accepted nor refused plainly."""

    target: str
    seed: int
    what: str


# ---- targets: each reads the input of a seed


def read_picture(draw: random.Random) -> None:
    """A photograph in one of the formats."""
    data = mutated(draw.choice(_pictures()), draw)
    read_photograph(data, "input", _MAX_PIXELS, first_frame=draw.random() < 0.5)


def answer_request(draw: random.Random) -> None:
    """A request to the service."""
    body = mutated(draw.choice(_pictures()), draw) if draw.random() < 0.8 else draw.randbytes(draw.randrange(200))
    kinds = ("image/png", "image/jpg", "application/octet-stream", "text/html", "", "\xff", "image/*;q=2")
    headers = [(b"content-type", draw.choice(kinds).encode("latin-1")), (b"accept", mutated(b"image/webp;q=0.5", draw))]
    path = draw.choice(("/restore", "/decode", "/limits", "/", "/app.js", "/..%2f", "//", "/restore/x"))
    query = draw.choice((b"", b"first_frame=1", b"first_frame=%ff", b"&&=&", b"a" * 5000))
    status = asyncio.run(_status(draw.choice(("POST", "POST", "GET", "PUT")), path, query, headers, body))
    if status >= 500:
        raise AssertionError(f"status {status}")


def read_dataset_index(draw: random.Random) -> None:
    """A dataset's index.json."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        store.put(INDEX, mutated_json(_dataset()[0], draw))
        read_index(store)


def read_shard_table(draw: random.Random) -> None:
    """A shard's table of samples, whose digest is right."""
    data = mutated(_dataset()[1], draw)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        shard = Shard(name="train/000000.tar", size_bytes=1, num_samples=2, table_sha256=sha256(data))
        store.put(shard.table, data)
        read_table(store, shard)


def read_sample(draw: random.Random) -> None:
    """A sample in a shard, whose checksum is right."""
    _, table, shard = _dataset()
    with np.load(io.BytesIO(table)) as places:
        offset, length, _ = places["places"].tolist()[0]
        key = places["keys"].tobytes().decode().split("\n")[0]
    data = mutated(shard[offset : offset + length], draw)
    sample = Sample(key=key, offset=0, length=len(data), crc32=zlib.crc32(data))
    blurred, sharp, _ = unpack(data, "train/000000.tar", sample)
    for side in (blurred, sharp):
        pictures.decode(side, key)


def read_pairs_table(draw: random.Random) -> None:
    """A table of pairs."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.png", "b.png"):
            (Path(folder) / name).write_bytes(_pictures()[0])
        table = Path(folder) / "pairs.csv"
        table.write_bytes(mutated(b"blurred,sharp,scene,split\na.png,b.png,1,train\nb.png,a.png,2,test\n", draw))
        read_pairs(table)


def read_generator(draw: random.Random) -> None:
    """A generator.safetensors, with and without the digest of its tensors, or with a damaged recipe."""
    header, tensors = split_header(_generator())
    metadata = header["__metadata__"]
    if damaged_recipe := draw.random() < 0.5:
        metadata["recipe"] = mutated_json(metadata["recipe"].encode(), draw).decode("utf-8", "replace")
    if draw.random() < 0.5:
        del metadata["sha256"]
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + tensors
    build_model(data if damaged_recipe else mutated(data, draw), "input", torch.device("cpu"))


def read_recipe(draw: random.Random) -> None:
    """A recipe."""
    recipes.from_json(mutated_json(recipes.to_json(Recipe()).encode(), draw), "input")


def resume_run(draw: random.Random) -> None:
    """A run's folder with one damaged file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = _run()
        damaged = draw.choice(sorted(files))
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            change = mutated_json if name.endswith(".json") else mutated
            (root / name).write_bytes(change(content, draw) if name == damaged else content)
        run = Run(str(root))
        run.read_metrics()
        run.recipe()
        run.origin()
        Checkpoints(open_store(root)).resume()
        run.resume(8, 4, "float32, on cpu")
        run.close()


TARGETS: dict[str, Callable[[random.Random], None]] = {
    "picture": read_picture,
    "request": answer_request,
    "index": read_dataset_index,
    "table": read_shard_table,
    "sample": read_sample,
    "pairs": read_pairs_table,
    "generator": read_generator,
    "recipe": read_recipe,
    "run": resume_run,
}


# ---- valid inputs


@cache
def _pictures() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    image, found = PIL.Image.fromarray(noise), []
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF"):
        out = io.BytesIO()
        image.save(out, kind)
        found.append(out.getvalue())
    return found


@cache
def _dataset() -> tuple[bytes, bytes, bytes]:
    """The index, a table and a shard of a dataset of two samples."""
    png = _pictures()[0]
    samples = [
        PackedSample(key=key, blurred_png=png, sharp_png=png, meta={"scene": "s"}, size=(24, 32)) for key in ("a", "b")
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        split = write_split(store, "train", samples, 1_000_000)
        write_index(store, Index(made={"by": "hostile"}, splits={"train": split}))
        (shard,) = split.shards
        assert store.get(shard.table) == encode_table(read_table(store, shard))
        return store.get(INDEX), store.get(shard.table), store.get(shard.name)


@cache
def _generator() -> bytes:
    recipe = Recipe(
        generator=GeneratorRecipe(architecture="fast-unet", filters=4, encoder_blocks=(1,), decoder_blocks=(1,))
    )
    return encode_generator(build_generator(recipe).state_dict(), recipe)


@cache
def _run() -> dict[str, bytes]:
    """The files of a run with a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder)
        recipe = Recipe(data=DataRecipe(images=8))
        run.begin(recipe, Origin(dataset="0" * 64, features=""))
        run.add_metrics({"images_seen": 4, "pixel_loss": 0.5})
        run.record_progress(4, preemption_notice=False)
        run.save(8, {"state.pt": b"state", "generator.safetensors": _generator()}, 30.0)
        run.close()
        root = Path(folder)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@cache
def _web() -> Web:
    class Same(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures

    return Web(Same(), "cpu", Metrics(SERVICE, {"replica": "1"}), max_pixels=_MAX_PIXELS, max_bytes=1_000_000)


async def _status(method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    """The status with which the app answers a request."""
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode()}
    scope |= {"query_string": query, "headers": headers, "scheme": "http", "root_path": "", "client": ("127.0.0.1", 1)}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await _web().app(scope | {"server": ("127.0.0.1", 80)}, receive, send)
    return int(sent[0]["status"])


# ---- the campaign


def outcome(target: str, seed: int) -> str:
    """Empty if the input was accepted or refused plainly, otherwise what happened."""
    before, started = _memory_mb(reset=True), time.monotonic()
    signal.signal(signal.SIGALRM, _interrupt)
    signal.alarm(int(MAX_S))
    try:
        TARGETS[target](random.Random(f"{target} {seed}"))
    except FINAL as error:
        if "\n" in str(error).strip():
            return f"not one line: {error!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    if time.monotonic() - started > MAX_S:
        return f"took more than {MAX_S:.0f} s"
    if (used := _memory_mb() - before) > MAX_MB:
        return f"took {used:.0f} MB"
    return ""


def _interrupt(*_: object) -> None:
    raise TimeoutError(f"took more than {MAX_S:.0f} s")


def _memory_mb(reset: bool = False) -> float:
    """The most memory that this process had since the last reset, where Linux counts it; otherwise since its start."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1000
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def outcomes(target: str, seeds: Sequence[int]) -> list[Failure]:
    """The failures among these inputs of a target."""
    logging.disable()  # a warning for each repaired file
    found = ((seed, outcome(target, seed)) for seed in seeds)
    return [Failure(target=target, seed=seed, what=what) for seed, what in found if what]


def campaign(settings: Settings) -> list[Failure]:
    """The failures among all inputs."""
    targets = settings.targets or tuple(TARGETS)
    if unknown := set(targets) - TARGETS.keys():
        raise InputError(f"--targets {sorted(unknown)}: unknown; choose from {', '.join(TARGETS)}")
    each = -(-settings.inputs // len(targets))
    failures = []
    for target in targets:
        for first in range(settings.first_seed, settings.first_seed + each, _CHUNK):
            seeds = range(first, min(first + _CHUNK, settings.first_seed + each))
            failures += _in_process(target, seeds)
        print(f"{target}: {each} inputs, {sum(one.target == target for one in failures)} failures", flush=True)
    return failures


@cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _in_process(target: str, seeds: Sequence[int]) -> list[Failure]:
    """The failures among these inputs; if the process dies, each is read in one of its own to find which."""
    try:
        return _pool().submit(outcomes, target, seeds).result()
    except BrokenProcessPool:
        _pool.cache_clear()
        if len(seeds) == 1:
            return [Failure(target=target, seed=seeds[0], what="the process died")]
        return [failure for seed in seeds for failure in _in_process(target, [seed])]


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, prog="python -m benchmarks.hostile")
    failures = campaign(settings)
    for failure in failures[:20]:
        print(f"{failure.target} {failure.seed}: {failure.what}")
    figures = {"failures": len(failures), "kinds": dict(Counter(failure.what.split(":")[0] for failure in failures))}
    print(json.dumps({"benchmark": "hostile", "machine": machine(), "settings": asdict(settings)} | figures))


if __name__ == "__main__":
    main()
