"""The adding and the multiplication problem (Hochreiter and Schmidhuber 1997; settings of Le 2015 and Talathi 2015).

    step    0     1     2     3    ...           target (adding)
    value  0.31  0.85  0.12  0.57                0.31 + 0.12 = 0.43
    mark    1     0     1     0

Every step has a value, uniform in (0, 1), and a mark; exactly two steps of a sequence are marked, anywhere. After the last one
the sum, or the product, of the marked values is asked. Always answering the mean costs 1/6, or 7/144, in squared error.

Sequence i is a pure function of (seed, split, i): nothing is stored, and every run sees the same data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm1b.randomness import derive_key, uniform
from lm1b.sequence_tasks.config import GeneratedConfig
from lm1b.sequence_tasks.data.task import Batch, SplitName, Task

BASELINE_SQUARED_ERROR = {"adding": 1 / 6, "multiplication": 7 / 144}


@dataclass(frozen=True)
class GeneratedSplit:
    """Sequences made when they are asked for."""

    config: GeneratedConfig
    name: SplitName
    size: int

    def __len__(self) -> int:
        return self.size

    def batch(self, indices_B: Tensor) -> Batch:
        """See Split. x_TBD: float32 [T, B, 2], value and mark of each step. targets: float32 [B], the marked values' sum or product."""
        num_steps, num_sequences = self.config.steps, len(indices_B)
        steps_T1 = torch.arange(num_steps).unsqueeze(1)
        values_TB = uniform(derive_key(self.config.seed, "values", self.name), indices_B * num_steps + steps_T1)
        draws_2B = uniform(derive_key(self.config.seed, "marks", self.name), indices_B * 2 + torch.arange(2).unsqueeze(1))
        first_B = (draws_2B[0] * num_steps).long()
        second_B = (draws_2B[1] * (num_steps - 1)).long()  # one of the steps that are left: any but the first
        second_B += second_B >= first_B
        marks_TB = (steps_T1 == first_B) | (steps_T1 == second_B)
        x_TBD = torch.stack([values_TB.float(), marks_TB.float()], dim=2)
        marked_TB = torch.where(marks_TB, x_TBD[:, :, 0], 1.0 if self.config.kind == "multiplication" else 0.0)
        targets_B = marked_TB.prod(0) if self.config.kind == "multiplication" else marked_TB.sum(0)
        return Batch(x_TBD, torch.full((num_sequences,), num_steps), targets_B)


def generated_task(config: GeneratedConfig) -> Task:
    """Adding or multiplication: a `number` is asked. baseline_loss: squared error of always answering the mean, 1/6 or 7/144."""
    return Task(
        name=f"{config.kind}, T = {config.steps}",
        asked="number",
        input_width=2,
        outputs=1,
        train=GeneratedSplit(config, "train", config.train_size),
        dev=GeneratedSplit(config, "dev", config.held_out_size),
        test=GeneratedSplit(config, "test", config.held_out_size),
        baseline_loss=BASELINE_SQUARED_ERROR[config.kind],
        sources={"data": f"made from seed {config.seed}"},
    )
