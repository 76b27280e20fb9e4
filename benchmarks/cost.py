"""What an update costs on any number of ranks: a few lines of arithmetic, fitted to measured updates.

    T(W) = c + e G 2 (W - 1) / W / B + m 2 (W - 1) a

c  seconds that the update takes alone
G  bytes of all gradients that an update reduces
B  bytes per second that a rank can send
e  share of the sending that computing does not hide: 0 where DistributedDataParallel overlaps all of it
   (arXiv:2006.15704, section 3.2.3), 1 where it overlaps nothing
m  messages (buckets) that an update reduces
a  seconds until a message is through, of each of the 2 (W - 1) steps of a ring

A ring sends 2 (W - 1) / W of the bytes, and nothing can send less (Patarasuk and Yuan 2009,
doi:10.1016/j.jpdc.2008.09.002). The second term is as good as constant from 16 ranks on; what ends the scaling is the
third, and nodes that are slower than the others, of which the model knows nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The letters of the formula."""

    compute_s: float
    gradient_bytes: float
    exposed: float
    messages: int = 0
    latency_s: float = 0.0

    def seconds(self, ranks: int, bytes_per_second: float) -> float:
        """T(W)."""
        steps = 2 * (ranks - 1)
        sending = self.exposed * self.gradient_bytes * steps / ranks / bytes_per_second
        return self.compute_s + sending + self.messages * steps * self.latency_s

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
    gradient_bytes: float, ranks: int, bytes_per_second: Sequence[float], seconds: Sequence[float]
) -> tuple[Cost, list[float]]:
    """c and e by least squares from updates at several rates (latency 0); and what is left of each, as a share."""
    sending = np.array([gradient_bytes * 2 * (ranks - 1) / ranks / rate for rate in bytes_per_second])
    design = np.stack([np.ones_like(sending), sending], axis=1)
    (compute_s, exposed), *_ = np.linalg.lstsq(design, np.array(seconds), rcond=None)
    cost = Cost(compute_s=float(compute_s), gradient_bytes=gradient_bytes, exposed=float(exposed))
    left = [cost.seconds(ranks, rate) / took - 1 for rate, took in zip(bytes_per_second, seconds, strict=True)]
    return cost, left
