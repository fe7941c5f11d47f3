"""What the machine does in matrix products alone, at the softmax's shape: what a step's speed is measured against."""

from __future__ import annotations

import statistics
import time

import torch

from lm1b.config import Config
from lm1b.devices import synchronize
from lm1b.distributed import Ranks, all_reduce_sum
from lm1b.model.costs import flops_per_word, logits_per_word
from lm1b.model.products import product

SECONDS = 0.2
ROWS = {"cpu": (512, 4096), "cuda": (8192, 8192)}  # positions and samples of the product


def products_rate(dtype: torch.dtype, width: int, device: torch.device, seconds: float = SECONDS) -> float:
    """Multiply-adds times two a second, on this process's threads: the median of as many products as fit into `seconds`."""
    positions, samples = ROWS.get(device.type, ROWS["cuda"])
    left, right = (torch.randn(rows, width, device=device).to(dtype) for rows in (positions, samples))
    rates, end_at = [], time.monotonic() + seconds
    product(left, right)  # the first sets things up
    while len(rates) < 3 or time.monotonic() < end_at:
        synchronize(device)
        started_at = time.perf_counter()
        product(left, right)
        synchronize(device)
        rates.append(2.0 * positions * samples * width / (time.perf_counter() - started_at))
    return statistics.median(rates)


def tokens_at_ceiling(config: Config, vocabulary_size: int, dtype: torch.dtype, ranks: Ranks) -> float | None:
    """Tokens a second of all ranks together if they did nothing but the steps' products at that rate. Collective. None: not asked for."""
    if not config.logging.ceiling:
        return None
    rate = torch.tensor(products_rate(dtype, config.model.output_width, ranks.device), dtype=torch.float64, device=ranks.device)
    return float(all_reduce_sum(rate, ranks)) / flops_per_word(config.model, logits_per_word(config.softmax, vocabulary_size))
