"""Cost model of an update for any world size, fitted to measured updates.

    S(W) = G 2 (W - 1) / W / B
    T(W) = c + S - min((1 - f) S, h c) + m 2 (W - 1) a

c  seconds of an update without communication
G  bytes of all gradients that an update reduces
B  send bandwidth of a rank in bytes per second
f  share of G in the last bucket of each backward, which cannot overlap with computing
h  share of c with which communication can overlap, as in DistributedDataParallel (arXiv:2006.15704, section 3.2.3)
m  messages (buckets) that an update reduces
a  latency in seconds of a message in each of the 2 (W - 1) steps of a ring

A ring sends 2 (W - 1) / W of the bytes, which is the minimum (Patarasuk and Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002). Overlap is bounded by the computing, so T is never below S. S is nearly constant from
16 ranks on; the last term then limits scaling (a tree, of log W steps, would defer it), as do stragglers, which the
model ignores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters of the formula: c, G, f, h, m, a."""

    compute_s: float
    gradient_bytes: float
    last: float
    hiding: float
    messages: int = 0
    latency_s: float = 0.0

    def sending(self, ranks: int, bytes_per_second: float) -> float:
        """S(W)."""
        return self.gradient_bytes * 2 * (ranks - 1) / ranks / bytes_per_second

    def seconds(self, ranks: int, bytes_per_second: float) -> float:
        """T(W)."""
        sending = self.sending(ranks, bytes_per_second)
        hidden = min((1 - self.last) * sending, self.hiding * self.compute_s)
        return self.compute_s + sending - hidden + self.messages * 2 * (ranks - 1) * self.latency_s

    def efficiency(self, ranks: int, bytes_per_second: float) -> float:
        """c / T(W), for batches that grow with the ranks."""
        return self.compute_s / self.seconds(ranks, bytes_per_second)

    def most_ranks(self, least: float, bytes_per_second: float, limit: int = 1 << 20) -> int:
        """The largest power of two up to `limit` at which the efficiency is at least `least`."""
        ranks = 1
        while ranks < limit and self.efficiency(2 * ranks, bytes_per_second) >= least:
            ranks *= 2
        return ranks


def fit(
    cost: Cost, ranks: int, bytes_per_second: Sequence[float], seconds: Sequence[float]
) -> tuple[Cost, list[float]]:
    """Fits h to updates at several rates by least squares; returns the cost and the relative residual at each rate."""

    def residuals(hiding: float) -> list[float]:
        tried = replace(cost, hiding=hiding)
        return [tried.seconds(ranks, rate) / took - 1 for rate, took in zip(bytes_per_second, seconds, strict=True)]

    best = min(np.linspace(0, 1, 1001).tolist(), key=lambda hiding: sum(share**2 for share in residuals(hiding)))
    return replace(cost, hiding=best), residuals(best)
