"""What more ranks bring and what they cost: weak scaling, bytes on the wire, slow links, a model for other clusters.

python -m benchmarks.scaling --json

Two ranks of one thread, each on a core of its own, make updates together, and each for itself beside the other, in
turns: the second is what the machine allows. Links between network namespaces are then limited (where this process may
make them), with gradients sent while others are still computed, and after all of them. From the times at several rates
follows how much of the sending is hidden (cost.py), and from that a table for GPUs, whose computing is an assumption.
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
from deblur.recipe import build_critic, build_generator

GBIT = (10, 25, 100, 400)
GPUS = tuple(2**power for power in range(11))


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = option("paper", "Preset.")
    image_size: int = option(256, "Side of the pictures.")
    ranks: int = option(2, "At most one per core, or they disturb each other.")
    batch_per_rank: int = option(1, "Pictures of a rank in an update.")
    updates: int = option(2, "Of each kind per turn.")
    rounds: int = option(5, "Turns.")
    mbit: str = option("1000,500,250", "Rates of a link, in 1,000,000 bits per second.")
    parity_updates: int = option(2, "After which the weights of the ways are compared.")
    gpu_seconds: float | None = option(
        None, "Seconds of an update on one GPU, for the table; else from the next three."
    )
    gpu_tflops: float = option(989.0, "An assumption: bfloat16 of an H100, dense, by its data sheet.")
    gpu_share: float = option(0.35, "An assumption: the share of it that an update reaches.")
    gpu_batch: int = option(16, "Pictures of a GPU in an update.")
    gpu_latency_us: float = option(10.0, "An assumption: microseconds of a message's step.")
    json: bool = option(False, "Print one line of JSON at the end.")


def measure(settings: Settings) -> dict[str, Any]:
    """The figures, medians over turns."""
    told = {
        "recipe": settings.recipe,
        "image_size": settings.image_size,
        "batch_size": settings.ranks * settings.batch_per_rank,
    }
    least = least_bytes(settings)
    with ranks(settings.ranks, told) as group:
        scaling = weak_scaling(group, settings)
        figures = scaling | {
            "isolated": group.isolated,
            "least_bytes_per_update": least,
            "sent_to_least_bytes": scaling["sent_bytes_per_update"] / least if group.isolated else None,
            "apart": {
                way: group.all("apart", way=way, updates=settings.parity_updates)[0]["apart"] for way in WAYS[2:]
            },
        }
        if not group.isolated:
            return figures | {"left_out": ["limited links: this process may not make network namespaces"]}
        limited = limited_links(group, settings)
    rates = [1e6 / 8 * mbit for mbit in limited]
    cost, left = fit(gradient_bytes(settings), settings.ranks, rates, [times["ddp"] for times in limited.values()])
    return figures | {
        "seconds_at_mbit": limited,
        "fit_compute_s": cost.compute_s,
        "fit_exposed": cost.exposed,
        "fit_left": left,
        "gpus": gpu_table(settings, cost.exposed),
        "left_out": [],
    }


def weak_scaling(group: Ranks, settings: Settings) -> dict[str, Any]:
    """Two ranks together against each for itself."""
    turns: dict[str, list[float]] = {"alone": [], "ddp": [], "copied": []}
    sent = 0.0
    for way in turns:
        group.all("timed", way=way, updates=1)  # warms up
    for _ in range(settings.rounds):
        for way, found in turns.items():
            answers = group.all("timed", way=way, updates=settings.updates)
            found.append(max(answer["seconds"] for answer in answers))
            sent = answers[0]["sent_bytes"]  # the last way's and ddp's are the same
    efficiencies = [a / b for a, b in zip(turns["alone"], turns["ddp"], strict=True)]
    return {
        "efficiency": statistics.median(turns["alone"]) / statistics.median(turns["ddp"]),
        "efficiency_of_each_round": efficiencies,
        "seconds_alone": statistics.median(turns["alone"]),
        "seconds_together": statistics.median(turns["ddp"]),
        "copied_to_together_seconds": statistics.median(turns["copied"]) / statistics.median(turns["ddp"]),
        "sent_bytes_per_update": sent,
    }


def limited_links(group: Ranks, settings: Settings) -> dict[float, dict[str, float]]:
    """Seconds per update by rate and way; all ways take turns at one rate."""
    found: dict[float, dict[str, float]] = {}
    for mbit in map(float, settings.mbit.split(",")):
        group.limit(mbit)
        turns: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
        for way in turns:
            group.all("timed", way=way, updates=1)
        for _ in range(max(1, settings.rounds // 2)):
            for way, seconds in turns.items():
                answers = group.all("timed", way=way, updates=settings.updates)
                seconds.append(max(answer["seconds"] for answer in answers))
        found[mbit] = {way: statistics.median(seconds) for way, seconds in turns.items()}
    group.limit(None)
    return found


def parameters(settings: Settings) -> tuple[int, int]:
    """(generator's, critic's)"""
    recipe = recipe_of(UpdateSettings(recipe=settings.recipe, image_size=settings.image_size))
    made = build_generator(recipe), build_critic(recipe)
    return tuple(sum(p.numel() for p in network.parameters()) for network in made)


def gradient_bytes(settings: Settings) -> int:
    """That an update reduces: the critic's at each of its steps, the generator's once, in float32."""
    generator, critic = parameters(settings)
    steps = recipe_of(UpdateSettings(recipe=settings.recipe)).loss.critic_updates
    return 4 * (generator + steps * critic)


def least_bytes(settings: Settings) -> float:
    """That a rank must send per update (cost.py)."""
    return gradient_bytes(settings) * 2 * (settings.ranks - 1) / settings.ranks


def gpu_table(settings: Settings, exposed: float) -> dict[str, Any]:
    """Efficiency by gigabits per second of a GPU's link and by the number of GPUs, and where it falls below shares."""
    pictures = UpdateSettings(recipe=settings.recipe, image_size=settings.image_size, batch_size=settings.gpu_batch)
    assumed = counted(recipe_of(replace(pictures, batch_size=1)), pick_device())["ours"] * settings.gpu_batch
    seconds = settings.gpu_seconds or assumed / (settings.gpu_share * settings.gpu_tflops * 1e12)
    steps = recipe_of(pictures).loss.critic_updates
    cost = Cost(
        compute_s=seconds,
        gradient_bytes=gradient_bytes(settings),
        exposed=exposed,
        messages=steps + 1,
        latency_s=settings.gpu_latency_us / 1e6,
    )
    return {
        "seconds_alone": seconds,
        "seconds_are": "measured" if settings.gpu_seconds else "assumed",
        "efficiency": {gbit: {gpus: round(cost.efficiency(gpus, gbit / 8 * 1e9), 3) for gpus in GPUS} for gbit in GBIT},
        "most_gpus_at_90_percent": {gbit: cost.most_ranks(0.9, gbit / 8 * 1e9) for gbit in GBIT},
        "most_gpus_at_50_percent": {gbit: cost.most_ranks(0.5, gbit / 8 * 1e9) for gbit in GBIT},
    }


if __name__ == "__main__":
    run("scaling", __doc__, Settings, measure)
