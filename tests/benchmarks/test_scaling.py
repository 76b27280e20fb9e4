"""A tiny measurement of two ranks: bytes sent, divergence of the weights, and figures derived from others."""

import itertools
from typing import Any

import pytest

from benchmarks.ranks import WAYS
from benchmarks.scaling import GBIT, Settings, gradient_bytes, least_bytes, measure
from cluster.rehearsal.network import can_isolate

SMALL = Settings(recipe="demo", image_size=32, updates=1, rounds=2, mbit="200,50")


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return measure(SMALL)


def test_efficiency_is_the_ratio_of_the_rates(figures: dict[str, Any]) -> None:
    assert len(figures["efficiency_of_each_round"]) == 2
    assert figures["efficiency"] == pytest.approx(sum(figures["efficiency_of_each_round"]) / 2)


def test_the_reduced_bytes_match_the_formula(figures: dict[str, Any]) -> None:
    assert figures["reduced_bytes_per_update"] == gradient_bytes(SMALL)
    assert figures["messages_per_update"] > 1
    assert 0 < figures["reduced_last_share"] < 1


def test_two_ranks_send_each_gradient_once(figures: dict[str, Any]) -> None:
    assert least_bytes(SMALL) == gradient_bytes(SMALL)
    if not can_isolate():
        pytest.skip("needs network namespaces (root, iproute2)")
    assert 1 <= figures["sent_to_least_bytes"] < 1.05


def test_modes_that_only_change_communication_give_the_same_weights(figures: dict[str, Any]) -> None:
    divergence = figures["weight_divergence"]
    assert divergence.keys() == set(WAYS) - {"alone", "ddp"}
    assert divergence["copied"] == divergence["one_bucket"] == divergence["small_buckets"] == 0
    assert 0 < divergence["bfloat16"] < 0.5
    assert divergence["local_critic"] > 0


def test_efficiency_falls_with_gpus_and_rises_with_link_rate(figures: dict[str, Any]) -> None:
    if not can_isolate():
        pytest.skip("needs network namespaces (root, iproute2)")
    table = figures["gpus"]["efficiency"]
    for slow, fast in itertools.pairwise(GBIT):
        assert all(table[slow][gpus] <= table[fast][gpus] for gpus in table[slow])
    for row in table.values():
        assert list(row.values()) == sorted(row.values(), reverse=True)
        assert row[1] == 1
