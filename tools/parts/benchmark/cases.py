"""Which training steps are measured on a CPU and on a GPU, and what they should reach there."""

from __future__ import annotations

from dataclasses import dataclass

from lm1b.data.text.benchmark import VOCABULARY_SIZE
from parts.harness.shapes import NEWS_WORDS

# (ranks, threads of each): one core, and the two ways to use two.
ONE_CORE, TWO_RANKS, TWO_THREADS = (1, 1), (2, 1), (1, 2)
ONE_GPU = (1, None)  # threads as a run chooses them
GPU_BUSY = 0.9  # of a step's time: the goal of every shape


@dataclass(frozen=True)
class Goal:
    """What a shape should reach on one H200: words a second, and its share of the rate of matrix products alone."""

    words_per_second: float
    share_of_ceiling: float

    def as_json(self) -> dict[str, float]:
        return {"words_per_second": self.words_per_second, "share_of_ceiling": self.share_of_ceiling, "gpu_busy_share": GPU_BUSY}


@dataclass(frozen=True)
class Case:
    """A training step to measure, in some ways.

    saves: whether its checkpoint is measured too, of one rank. goal: on a GPU. triton: by its kernels (LM1B_TRITON=1).
    """

    shape: str
    precision: str = "bf16"
    vocabulary: int = VOCABULARY_SIZE
    ways: tuple[tuple[int, int | None], ...] = (ONE_CORE, TWO_RANKS)
    settings: tuple[str, ...] = ()
    saves: bool = False
    goal: Goal | None = None
    triton: bool = False


CPU_CASES = [
    *(Case(shape, precision) for shape in ("irnn_512", "irnn_1024_512", "lstm_512", "lstm_2048_512") for precision in ("bf16", "fp32")),
    # What of a step does not follow its lanes: tools/scaling_model.py needs it.
    Case("lstm_512", ways=(ONE_CORE,), settings=("batches.lanes=64",)),
    Case("lstm_512", ways=(TWO_THREADS,)),
    Case("lstm_512", "fp32", ways=(TWO_THREADS,)),
    Case("irnn_1024_512", ways=(TWO_THREADS,)),
    Case("lstm_512", vocabulary=NEWS_WORDS, saves=True),
    # The last of its processes: DeepSpeed's engines stay in memory.
    Case("biglstm_slice", vocabulary=NEWS_WORDS, ways=(ONE_CORE,)),
]


def _on_gpu(shape: str, precision: str = "bf16", lanes: int = 512, goal: Goal | None = None, triton: bool = False) -> Case:
    return Case(shape, precision, ways=(ONE_GPU,), settings=(f"batches.lanes={lanes}",), goal=goal, triton=triton)


GPU_CASES = [
    _on_gpu("lstm_2048_512", goal=Goal(1_500_000, 0.15)),
    _on_gpu("lstm_2048_512", "fp16"),
    _on_gpu("lstm_2048_512", lanes=128),
    _on_gpu("lstm_2048_512", triton=True),
    _on_gpu("irnn_1024_512", goal=Goal(3_000_000, 0.14)),
    _on_gpu("irnn_1024_512", "fp16"),
    _on_gpu("irnn_1024_512", lanes=128),
    _on_gpu("irnn_1024_512", triton=True),
    _on_gpu("biglstm", goal=Goal(350_000, 0.40)),
]
CASES = {"cpu": CPU_CASES, "cuda": GPU_CASES}
# Exact evaluation of as many predictions as heldout-00000 has, in bf16.
EVALUATION_GOAL = {"seconds": 2.0, "share_of_ceiling": 0.40}
EVALUATED = 159_658
