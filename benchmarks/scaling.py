"""What more ranks bring and what they cost: weak scaling, bytes on the wire, slow links, a model for other clusters.

python -m benchmarks.scaling --json

Two ranks of one thread, each on a core of its own, make updates together, and each for itself beside the other, in
turns: the second is what the machine allows. Efficiency compares the pictures per second of all ranks. Links between
network namespaces are then limited (where this process may), with gradients sent while others are still computed, and
after all of them. From the times at several rates follows how much computing hides of the sending (cost.py), and from
that a table for GPUs, whose computing is an assumption.
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
        reduced = group.all("reduced")[0]
        figures = scaling | {
            "isolated": group.isolated,
            "messages_per_update": reduced["messages"],
            "reduced_bytes_per_update": reduced["bytes"],
            "reduced_last_share": reduced["last_bytes"] / reduced["bytes"],
            "least_bytes_per_update": least,
            "sent_to_least_bytes": scaling["sent_bytes_per_update"] / least if group.isolated else None,
            "apart": {
                way: group.all("apart", way=way, updates=settings.parity_updates)[0]["apart"] for way in WAYS[2:]
            },
        }
        if not group.isolated:
            return figures | {"left_out": ["bytes, limited links: this process may not make network namespaces"]}
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
    """Two ranks together against each for itself."""
    turns: dict[str, list[list[dict[str, float]]]] = {"alone": [], "ddp": [], "copied": []}
    for way in turns:
        group.all("timed", way=way, updates=1)  # warms up
    for _ in range(settings.rounds):
        for way, found in turns.items():
            found.append(group.all("timed", way=way, updates=settings.updates))
    rates = {
        way: [sum(settings.batch_per_rank / answer["seconds"] for answer in turn) for turn in found]
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
    """Over turns, of the mean over ranks."""
    return statistics.median(statistics.mean(answer[name] for answer in turn) for turn in turns)


def limited_links(group: Ranks, settings: Settings) -> dict[float, dict[str, list[float]]]:
    """Seconds per update by rate, way and turn; all ways take turns at one rate."""
    found: dict[float, dict[str, list[float]]] = {}
    for mbit in map(float, settings.mbit.split(",")):
        group.limit(mbit)
        turns: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
        for way in turns:
            group.all("timed", way=way, updates=1)
        for _ in range(max(1, settings.rounds // 2)):
            for way, seconds in turns.items():
                answers = group.all("timed", way=way, updates=settings.updates)
                seconds.append(max(answer["seconds"] for answer in answers))
        found[mbit] = turns
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


def gpu_table(settings: Settings, fitted: Cost) -> dict[str, Any]:
    """Efficiency by gigabits per second of a GPU's link and by the number of GPUs, and where it falls below shares."""
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
