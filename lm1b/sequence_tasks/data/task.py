"""What every task gives its trainer: splits of sequences, and what a network is to say of each.

    files or a seed -> Split -- indices --> Batch: x_TBD, lengths_B, targets

1. A `Task` has three splits. `train` is learned from, `dev` decides, `test` is looked at once, in the end.
2. A `Split` makes the batch of any sequences of its own, by number: it holds no order and no random state.
3. What is asked for is a `number` or a `label` a sequence, read at its last step, or a `label_per_step`.

>>> task = load_task(config.task)
>>> batch = task.train.batch(torch.tensor([5, 0]))     # two sequences, side by side, the shorter one padded with zeros

T steps of the longest sequence, B sequences, D input width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Asked = Literal["number", "label", "label_per_step"]
SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
NO_LABEL = -1  # of a step after a sequence's end, and of one that is not asked for (phones: q)


@dataclass(frozen=True)
class Batch:
    """Sequences side by side.

    x_TBD: float32, zero after a sequence's end. lengths_B: int64, at least 1.
    targets: `number`: float32 [B]. `label`: int64 [B]. `label_per_step`: int64 [T, B], NO_LABEL where nothing is asked.
    """

    x_TBD: Tensor
    lengths_B: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device, all three tensors; what is there already is not copied."""
        return Batch(self.x_TBD.to(device), self.lengths_B.to(device), self.targets.to(device))


class Split(Protocol):
    """Sequences by number, 0 to len - 1."""

    def __len__(self) -> int: ...

    def batch(self, indices_B: Tensor) -> Batch:
        """The sequences with these numbers (int64), in this order."""
        ...


@dataclass(frozen=True)
class Task:
    """A task, ready to be learned.

    input_width: D. outputs: numbers or labels a network says (1 for `number`). baseline_loss: what always giving the best constant
    answer costs, in the training loss's unit (squared error, or nats a label). sources: where the data came from, for the record.
    """

    name: str
    asked: Asked
    input_width: int
    outputs: int
    train: Split
    dev: Split
    test: Split
    baseline_loss: float
    sources: dict[str, str]


@dataclass(frozen=True)
class StoredSequences:
    """A split held in memory: sequences of any length, one after another.

    x_ND: float32 [N, D], all steps of all sequences. starts_S1: int64 [S + 1], where each starts, and N.
    targets: [S], or [N] where every step has a label.
    """

    x_ND: Tensor
    starts_S1: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.starts_S1) - 1

    def batch(self, indices_B: Tensor) -> Batch:
        """See Split. x_TBD is as long as the longest of them; a shorter one is zero after its end."""
        starts_B, ends_B = self.starts_S1[indices_B], self.starts_S1[indices_B + 1]
        lengths_B = ends_B - starts_B
        steps_T1 = torch.arange(int(lengths_B.max())).unsqueeze(1)
        is_real_TB = steps_T1 < lengths_B
        positions_TB = torch.where(is_real_TB, starts_B + steps_T1, 0)
        x_TBD = self.x_ND[positions_TB] * is_real_TB.unsqueeze(2)
        if len(self.targets) == len(self):
            return Batch(x_TBD, lengths_B, self.targets[indices_B])
        return Batch(x_TBD, lengths_B, torch.where(is_real_TB, self.targets[positions_TB], NO_LABEL))


def stored(sequences: list[Tensor], targets: list[Tensor] | Tensor) -> StoredSequences:
    """A split from its sequences [T, D] and either a target each or, as a list, the labels [T] of each."""
    lengths = torch.tensor([0, *(len(sequence) for sequence in sequences)])
    labels = targets if isinstance(targets, Tensor) else torch.cat(targets)
    return StoredSequences(torch.cat(sequences).to(torch.float32), lengths.cumsum(0), labels)


def constant_answer_nats(labels: Tensor) -> float:
    """Nats a label of always answering with the labels' own frequencies. labels: int64, any shape, NO_LABEL left out."""
    counts = torch.bincount(labels[labels != NO_LABEL].flatten()).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())
