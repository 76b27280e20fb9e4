"""Ranks of a benchmark: single-threaded processes, each pinned to a core, that take commands as lines of JSON.

Where permitted, each has a network namespace with its own link, whose bytes are counted and whose rate can be limited
(tc, Debian's iproute2). python -m benchmarks.ranks is one such process.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook

from benchmarks.update import Settings as UpdateSettings
from benchmarks.update import recipe_of
from cluster.rehearsal.network import Place, can_isolate, new_name, new_network
from cluster.sync import Rank
from deblur.config.recipes import Recipe
from deblur.models.vgg import load_features
from deblur.training.distributed import build
from deblur.training.update import Updater

# alone         no communication
# ddp           as deblur trains
# copied        gradients are copied into buckets and back (no gradient_as_bucket_view)
# one_bucket    all gradients of a network in one message after its backward: no overlap
# small_buckets buckets of at most about 5 MB, unless a single gradient is larger
# bfloat16      gradients are compressed to bfloat16
# local_critic  critics step locally and are averaged once per update: a different algorithm
WAYS = ("alone", "ddp", "copied", "one_bucket", "small_buckets", "bfloat16", "local_critic")


# ---- in each process


class Ways:
    """Updaters of one rank, built on first use."""

    def __init__(self, recipe: Recipe, rank: Rank) -> None:
        self.recipe, self.rank, self._made = recipe, rank, dict[str, Updater]()
        self.features = load_features(recipe.loss.features, "random", None)

    def updater(self, way: str) -> Updater:
        """The cached updater of a mode."""
        if way not in self._made:
            self._made[way] = self.fresh(way)
        return self._made[way]

    def fresh(self, way: str) -> Updater:
        """A new updater with the initial weights of the recipe."""
        if way == "ddp":
            return build(self.recipe, self.features, self.rank)
        updater = build(self.recipe, self.features, Rank())
        if way == "alone":
            return updater
        scale = self.rank.num_ranks / self.recipe.data.batch_size
        updater.context = replace(updater.context, scale=scale)
        bucket = {"one_bucket": {"bucket_cap_mb": 1 << 20}, "small_buckets": {"bucket_cap_mb": 5}}.get(way, {})
        wrap = partial(nn.parallel.DistributedDataParallel, gradient_as_bucket_view=way != "copied", **bucket)
        updater.generator = wrap(updater.generator)
        if way != "local_critic":
            updater.critic = wrap(updater.critic)
        if way == "bfloat16":
            for network in (updater.generator, updater.critic):
                network.register_comm_hook(None, bf16_compress_hook)
        return updater

    def update(self, way: str, updater: Updater, nth: int) -> None:
        """Makes the nth update, on noise that differs between ranks."""
        torch.manual_seed(nth * self.rank.num_ranks + self.rank.rank)
        updater.update(*self._batch(nth))
        if way == "local_critic":
            for parameter in updater.critic.parameters():
                dist.all_reduce(parameter.data)
                parameter.data /= self.rank.num_ranks

    def _batch(self, nth: int) -> tuple[Tensor, Tensor, Tensor]:
        data, share = self.recipe.data, self.recipe.data.batch_size // self.rank.num_ranks
        draw = torch.Generator().manual_seed(nth * self.rank.num_ranks + self.rank.rank)
        blurred, sharp = 2 * torch.rand(2, share, 3, data.crop, data.crop, generator=draw) - 1
        return blurred, sharp, torch.rand(self.recipe.loss.critic_updates, share, 1, 1, 1, generator=draw)

    def timed(self, way: str, updates: int) -> dict[str, float]:
        """Wall-clock seconds, CPU seconds and bytes sent per update (0 bytes without an own link)."""
        updater = self.updater(way)
        dist.barrier()
        sent, start, processor = _sent_bytes(), time.perf_counter(), time.process_time()
        for nth in range(updates):
            self.update(way, updater, nth)
        seconds = time.perf_counter() - start
        found = {"seconds": seconds, "processor": time.process_time() - processor, "sent_bytes": _sent_bytes() - sent}
        return {name: value / updates for name, value in found.items()}

    def reduced(self) -> dict[str, float]:
        """Messages and bytes that DDP reduces in an update, and the bytes of the last bucket of each backward."""
        updater, messages, last = self.fresh("ddp"), list[int](), list[int]()

        def count(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            messages.append(bucket.buffer().nbytes)
            last.extend(messages[-1:] if bucket.is_last() else [])
            return allreduce_hook(None, bucket)

        for network in (updater.generator, updater.critic):
            network.register_comm_hook(None, count)
        for nth in range(2):  # DDP rebuilds its buckets after the first backward
            messages.clear()
            last.clear()
            self.update("ddp", updater, nth)
        return {"messages": len(messages), "bytes": sum(messages), "last_bytes": sum(last)}

    def weight_divergence(self, way: str, updates: int) -> dict[str, float]:
        """Distance between the weights after some updates and those of "ddp", relative to how far "ddp" moved them."""
        initial = _weights(self.fresh("ddp"))
        ends = []
        for each in ("ddp", way):
            updater = self.fresh(each)
            for nth in range(updates):
                self.update(each, updater, nth)
            ends.append(_weights(updater))
        return {"weight_divergence": ((ends[1] - ends[0]).norm() / (ends[0] - initial).norm()).item()}


def _weights(updater: Updater) -> Tensor:
    """The weights of both networks: [all]"""
    networks = (updater.generator, updater.critic)
    return torch.cat([p.detach().double().flatten() for network in networks for p in network.parameters()])


def _sent_bytes() -> int:
    link = Path("/sys/class/net/eth0/statistics/tx_bytes")
    return int(link.read_text()) if os.environ["GLOO_SOCKET_IFNAME"] == "eth0" else 0


def main() -> None:
    config = json.loads(sys.argv[1])
    rank = Rank(rank=config["rank"], num_ranks=config["num_ranks"])
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank.rank % len(cores)]})
    dist.init_process_group("gloo", init_method=config["init_method"], rank=rank.rank, world_size=rank.num_ranks)
    ways = Ways(recipe_of(UpdateSettings(**config["settings"])), rank)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(ways, command.pop("method"))(**command)), flush=True)
    dist.destroy_process_group()


# ---- in the measuring process


@dataclass(frozen=True)
class Ranks:
    """Running rank processes."""

    processes: list[subprocess.Popen]
    places: list[Place]

    @property
    def isolated(self) -> bool:
        """Whether each rank has a network namespace."""
        return bool(self.places)

    def call(self, method: str, **arguments: Any) -> list[dict[str, float]]:
        """Calls a method of `Ways` on all ranks; returns the result of each."""
        for process in self.processes:
            process.stdin.write(json.dumps({"method": method, **arguments}) + "\n")
            process.stdin.flush()
        return [_result(process) for process in self.processes]

    def can_limit(self) -> bool:
        """Tries whether tc and the kernel's tbf can limit links here."""
        try:
            self.limit(1000)
            self.limit(None)
        except (OSError, subprocess.CalledProcessError):
            return False
        return self.isolated

    def limit(self, mbit: float | None) -> None:
        """Limits each link to `mbit` megabits per second; None removes the limit."""
        for place in self.places:
            command = [*place.command(), "tc", "qdisc"]
            subprocess.run([*command, "delete", "dev", "eth0", "root"], check=False, capture_output=True)
            if mbit:
                limit = ["tbf", "rate", f"{mbit}mbit", "burst", "1mb", "latency", "100ms"]
                subprocess.run([*command, "add", "dev", "eth0", "root", *limit], check=True, capture_output=True)


def _result(process: subprocess.Popen) -> dict[str, float]:
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a rank exited with status {process.wait()}; see its output above")
    return json.loads(line)


@contextlib.contextmanager
def ranks(num_ranks: int, settings: dict[str, Any]) -> Iterator[Ranks]:
    """Starts `num_ranks` processes with `settings` for `benchmarks.update.Settings`; the context ends them."""
    with contextlib.ExitStack() as stack:
        places: list[Place] = []
        if can_isolate():
            network = stack.enter_context(new_network(new_name()))
            places = [network.add(nth) for nth in range(num_ranks)]
        address = places[0].address if places else "127.0.0.1"
        link, init_method = "eth0" if places else "lo", f"tcp://{address}:{_free_port()}"
        processes = []
        for nth in range(num_ranks):
            config = {"rank": nth, "num_ranks": num_ranks, "init_method": init_method, "settings": settings}
            command = [*(places[nth].command() if places else []), sys.executable, "-m", "benchmarks.ranks"]
            process = subprocess.Popen(
                [*command, json.dumps(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": link},
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            _result(process)
        yield Ranks(processes, places)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]


if __name__ == "__main__":
    main()
