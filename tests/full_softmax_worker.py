"""One rank of a full softmax whose rows and positions are dealt over ranks; see test_full_softmax.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from lm1b.model import blocks, full_softmax
from lm1b.training.engine.process_group import plain_ranks

BLOCK = 7


def main(folder: Path) -> None:
    """Write nats and gradients of this rank's positions and rows."""
    case = {name: torch.tensor(value) for name, value in json.loads((folder / "case.json").read_text()).items()}
    widths = []
    product = blocks.product

    def watched(x: Any, w: Any, **keywords: Any) -> Any:
        found = product(x, w, **keywords)
        widths.append(min(found.shape[1], w.shape[0]) if w.shape[1] == case["hidden"].shape[1] else 0)
        return found

    blocks.product = full_softmax.product = watched
    with plain_ranks() as ranks:
        own = slice(ranks.rank * len(case["hidden"]) // ranks.size, (ranks.rank + 1) * len(case["hidden"]) // ranks.size)
        hidden = case["hidden"][own].clone().requires_grad_()
        rows, bias = (case[name][ranks.rank :: ranks.size].clone().requires_grad_() for name in ("rows", "bias"))
        nats = full_softmax.OwnRows(rows, bias.unsqueeze(1), ranks, BLOCK).nats(hidden, case["targets"][own])
        nats.backward()
        grads = {
            name: tensor.grad.tolist() for name, tensor in (("hidden", hidden), ("rows", rows), ("bias", bias)) if tensor.grad is not None
        }
        report = {"nats": nats.item(), "most_rows_at_once": max(widths), **grads}
        (folder / f"rank{ranks.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
