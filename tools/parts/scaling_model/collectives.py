"""What a collective sends and how long it takes, on a network that has a latency a message and a bandwidth a rank.

N ranks, n bytes, a seconds a message, b bytes a second in each direction at once. Sent by each rank, and time:

* all-to-all, n of a rank for all ranks: n (N-1)/N bytes; (N-1) a + n (N-1)/N / b, one message to each.
* all-gather, n in all: n (N-1)/N bytes; ring: (N-1) a + n (N-1)/N / b.
* all-reduce of n: 2 n (N-1)/N bytes; ring, a reduce-scatter and an all-gather: 2 (N-1) a + 2 n (N-1)/N / b.

These are the algorithms of gloo (alltoallv.cc, allgather.cc, allreduce.cc); costs as in Thakur, Rabenseifner and Gropp 2005,
"Optimization of Collective Communication Operations in MPICH", IJHPCA 19(1), 49-66, without the additions of a reduction. gloo
posts all messages of an all-to-all at once, so that (N-1) a is the most it can be. "best" takes for each collective the cheaper
of this and the same paper's logarithmic one, with k = ceil(log2 N): all-to-all k (a + n / 2b) (Bruck), all-gather k a and
all-reduce 2 k a with the bytes above (recursive doubling, Rabenseifner).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lm1b.errors import UserError

Kind = Literal["all_to_all", "all_gather", "all_reduce"]


@dataclass(frozen=True)
class Network:
    """latency_seconds: of one message. bytes_per_second: of one rank, in each direction at once."""

    name: str
    latency_seconds: float
    bytes_per_second: float

    @staticmethod
    def parse(text: str) -> Network:
        """`NAME=latency_us,gbit` -> a network. Raises UserError where it reads otherwise."""
        name, _, figures = text.partition("=")
        try:
            latency, gbit = (float(figure) for figure in figures.split(","))
        except ValueError:
            latency, gbit = math.nan, math.nan
        if not name or not (0 <= latency < math.inf and 0 < gbit < math.inf):
            raise UserError(f"--network {text}: expected NAME=LATENCY_US,GBIT such as 25gbit=30,25")
        return Network(name, latency * 1e-6, gbit * 1e9 / 8)

    def shared_by(self, num_ranks: float) -> Network:
        """The same, where so many ranks share what is said of one."""
        return Network(self.name, self.latency_seconds, self.bytes_per_second / num_ranks)


# Round figures of common hardware, assumed and not measured: TCP on Ethernet, and remote memory access at 200 Gbit/s.
NETWORKS = [Network.parse(text) for text in ("1gbit=60,1", "25gbit=30,25", "200gbit=3,200")]


@dataclass(frozen=True)
class Collective:
    """One collective of a step.

    num_bytes: all_to_all: what a rank has for all ranks, itself included; all_gather: the result; all_reduce: the tensor.
    busiest: by how much the slowest rank's share exceeds the mean, which makes it slower but sends no more in all.
    """

    what: str
    kind: Kind
    num_bytes: float
    busiest: float = 1.0

    def sent_bytes(self, ranks: int) -> float:
        """What one rank puts on the wire, on average over ranks."""
        return self.num_bytes * (2 if self.kind == "all_reduce" else 1) * (ranks - 1) / ranks

    def seconds(self, ranks: int, network: Network, algorithms: Literal["gloo", "best"] = "gloo") -> float:
        """Until the busiest rank is done; 0 for one rank."""
        if ranks == 1:
            return 0.0
        rounds, log_rounds = ranks - 1, math.ceil(math.log2(ranks))
        if self.kind == "all_reduce":
            rounds, log_rounds = 2 * rounds, 2 * log_rounds
        transfer = self.busiest * self.sent_bytes(ranks) / network.bytes_per_second
        linear = rounds * network.latency_seconds + transfer
        if algorithms == "gloo":
            return linear
        if self.kind == "all_to_all":
            transfer = log_rounds * self.busiest * self.num_bytes / 2 / network.bytes_per_second
        return min(linear, log_rounds * network.latency_seconds + transfer)
