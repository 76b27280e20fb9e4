"""Weak scaling, bytes on the wire, slow links, and a cost model for other clusters.

python -m benchmarks.scaling --json

Two single-threaded ranks, each pinned to a core, alternate between updates together and independent updates side by
side, which are the upper bound of this machine. Efficiency is the ratio of pictures per second of all ranks. Links
between network namespaces are then limited (where permitted), with gradients sent during the backward pass and after
it. Times at several rates give the overlap of computing and communication (cost.py), and that gives a table for GPUs,
whose compute time is an assumption.
"""

import statistics
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.command import option, run
from benchmarks.cost import Cost, fit
from benchmarks.ranks import WAYS, Ranks, ranks
from benchmarks.timing import pick_device
from benchmarks.update import Settings as UpdateSettings
from benchmarks.update import counted, recipe_of
from deblur.models.build import build_critic, build_generator

GBIT = (10, 25, 100, 400)
GPUS = tuple(2**power for power in range(11))


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = option("paper", "Preset.")
    image_size: int = option(256, "Side of the pictures.")
    ranks: int = option(2, "World size, at most one per core.")
    batch_per_rank: int = option(1, "Pictures per rank and update.")
    updates: int = option(2, "Updates of each mode per round.")
    rounds: int = option(5, "Rounds.")
    mbit: str = option("1000,500,250", "Link rates in Mbit/s.")
    parity_updates: int = option(2, "Updates after which the weights of the modes are compared.")
    gpu_seconds: float | None = option(
        None, "Seconds of an update on one GPU, for the table; default: from the next three."
    )
    gpu_tflops: float = option(989.0, "Assumption: dense bfloat16 of an H100, by its data sheet.")
    gpu_share: float = option(0.35, "Assumption: the share of gpu_tflops that an update reaches.")
    gpu_batch: int = option(16, "Pictures per GPU and update.")
    gpu_latency_us: float = option(10.0, "Assumption: latency of one step of a message, in microseconds.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over rounds."""
    update_settings = {
        "recipe": settings.recipe,
        "image_size": settings.image_size,
        "batch_size": settings.ranks * settings.batch_per_rank,
    }
    least = least_bytes(settings)
    with ranks(settings.ranks, update_settings) as group:
        scaling = weak_scaling(group, settings)
        reduced = group.call("reduced")[0]
        figures = scaling | {
            "isolated": group.isolated,
            "messages_per_update": reduced["messages"],
            "reduced_bytes_per_update": reduced["bytes"],
            "reduced_last_share": reduced["last_bytes"] / reduced["bytes"],
            "least_bytes_per_update": least,
            "sent_to_least_bytes": scaling["sent_bytes_per_update"] / least if group.isolated else None,
            "weight_divergence": {
                way: group.call("weight_divergence", way=way, updates=settings.parity_updates)[0]["weight_divergence"]
                for way in WAYS[2:]
            },
        }
        if not group.isolated:
            return figures | {"left_out": ["bytes, limited links: network namespaces are not permitted here"]}
        if not group.can_limit():
            return figures | {"left_out": ["limited links: tc or the kernel's tbf is not permitted here"]}
        turns = limited_links(group, settings)
    limited = {mbit: {way: statistics.median(found) for way, found in ways.items()} for mbit, ways in turns.items()}
    cost = Cost(
        compute_s=scaling["seconds_together"],
        gradient_bytes=reduced["bytes"],
        last=figures["reduced_last_share"],
        hiding=0,
        messages=reduced["messages"],
    )
    rates = {mbit: mbit * 1e6 / 8 for mbit in limited}
    cost, left = fit(cost, settings.ranks, list(rates.values()), [times["ddp"] for times in limited.values()])
    sending = {mbit: cost.sending(settings.ranks, rate) for mbit, rate in rates.items()}
    return figures | {
        "seconds_at_mbit": limited,
        "seconds_at_mbit_of_each_round": turns,
        "hidden_share_at_mbit": {
            mbit: {way: 1 - (limited[mbit][way] - cost.compute_s) / sending[mbit] for way in ("ddp", "one_bucket")}
            for mbit in limited
        },
        "fit_hiding": cost.hiding,
        "fit_left": left,
        "gpus": gpu_table(settings, cost),
        "left_out": [],
    }


def weak_scaling(group: Ranks, settings: Settings) -> dict[str, Any]:
    """Ranks that train together, compared with independent ranks."""
    turns: dict[str, list[list[dict[str, float]]]] = {"alone": [], "ddp": [], "copied": []}
    for way in turns:
        group.call("timed", way=way, updates=1)  # warms up
    for _ in range(settings.rounds):
        for way, found in turns.items():
            found.append(group.call("timed", way=way, updates=settings.updates))
    rates = {
        way: [sum(settings.batch_per_rank / result["seconds"] for result in turn) for turn in found]
        for way, found in turns.items()
    }
    efficiencies = [together / alone for together, alone in zip(rates["ddp"], rates["alone"], strict=True)]
    return {
        "efficiency": statistics.median(efficiencies),
        "efficiency_of_each_round": efficiencies,
        "images_per_second_alone": statistics.median(rates["alone"]),
        "images_per_second_together": statistics.median(rates["ddp"]),
        "seconds_alone": _median(turns["alone"], "seconds"),
        "seconds_together": _median(turns["ddp"], "seconds"),
        "processor_seconds_alone": _median(turns["alone"], "processor"),
        "processor_seconds_together": _median(turns["ddp"], "processor"),
        "copied_to_together_images": statistics.median(
            copied / together for copied, together in zip(rates["copied"], rates["ddp"], strict=True)
        ),
        "sent_bytes_per_update": _median(turns["ddp"], "sent_bytes"),
    }


def _median(turns: list[list[dict[str, float]]], name: str) -> float:
    """Median over rounds of the mean over ranks."""
    return statistics.median(statistics.mean(result[name] for result in turn) for turn in turns)


def limited_links(group: Ranks, settings: Settings) -> dict[float, dict[str, list[float]]]:
    """Seconds per update by rate, mode and round; the modes alternate at each rate."""
    found: dict[float, dict[str, list[float]]] = {}
    for mbit in map(float, settings.mbit.split(",")):
        group.limit(mbit)
        turns: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
        for way in turns:
            group.call("timed", way=way, updates=1)
        for _ in range(max(1, settings.rounds // 2)):
            for way, seconds in turns.items():
                results = group.call("timed", way=way, updates=settings.updates)
                seconds.append(max(result["seconds"] for result in results))
        found[mbit] = turns
    group.limit(None)
    return found


def parameters(settings: Settings) -> tuple[int, int]:
    """Number of parameters of (generator, critic)."""
    recipe = recipe_of(UpdateSettings(recipe=settings.recipe, image_size=settings.image_size))
    made = build_generator(recipe), build_critic(recipe)
    return tuple(sum(p.numel() for p in network.parameters()) for network in made)


def gradient_bytes(settings: Settings) -> int:
    """Gradient bytes reduced per update, in float32: the critic's in each of its steps, the generator's once."""
    generator, critic = parameters(settings)
    steps = recipe_of(UpdateSettings(recipe=settings.recipe)).loss.critic_updates
    return 4 * (generator + steps * critic)


def least_bytes(settings: Settings) -> float:
    """Minimum that a rank has to send per update (cost.py)."""
    return gradient_bytes(settings) * 2 * (settings.ranks - 1) / settings.ranks


def gpu_table(settings: Settings, fitted: Cost) -> dict[str, Any]:
    """Efficiency by link rate (Gbit/s per GPU) and number of GPUs, and the most GPUs at 90 % and 50 %."""
    pictures = UpdateSettings(recipe=settings.recipe, image_size=settings.image_size, batch_size=settings.gpu_batch)
    assumed = counted(recipe_of(replace(pictures, batch_size=1)), pick_device())["ours"] * settings.gpu_batch
    seconds = settings.gpu_seconds or assumed / (settings.gpu_share * settings.gpu_tflops * 1e12)
    cost = replace(fitted, compute_s=seconds, latency_s=settings.gpu_latency_us / 1e6)
    return {
        "seconds_alone": seconds,
        "seconds_are": "measured" if settings.gpu_seconds else "assumed",
        "efficiency": {gbit: {gpus: round(cost.efficiency(gpus, gbit / 8 * 1e9), 3) for gpus in GPUS} for gbit in GBIT},
        "most_gpus_at_90_percent": {gbit: cost.most_ranks(0.9, gbit / 8 * 1e9) for gbit in GBIT},
        "most_gpus_at_50_percent": {gbit: cost.most_ranks(0.5, gbit / 8 * 1e9) for gbit in GBIT},
    }


if __name__ == "__main__":
    run("scaling", __doc__, Settings, measure)
