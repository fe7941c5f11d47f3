"""How fast everything is, beside what this machine can do, measured in the same run: one table, one JSON.

    python tools/benchmark.py --json out.json --counts training_word_counts.npy --against plain --against hf-wordlevel
    python tools/benchmark.py --device cuda --json benchmark_cuda.json --table benchmark_cuda.md

1. Training steps of every shape, in bf16 and fp32, by warm processes that take turns (one rank on one thread, two ranks on a thread
   each, one rank on two threads): words/s, share of the matrix products' own rate (measured between the steps), parts of a step, what
   happens behind it, CPU time by thread; one checkpoint saved and read back, beside the disk's own rate.
2. What the logs cost a step; exact evaluation over the whole vocabulary; preprocessing by phase; start and resumption with tables of
   the real size.

Medians of interleaved repeats, and CPU time wherever a share is meant: machines are shared. Tokens are drawn from the unigram counts, so
that rows, samples and traffic are those of real text. `--counts` is a .npy file of training counts; without it a Zipf curve stands in.

On a GPU: the shapes of parts/benchmark/cases.py on one rank, wall time of steps that follow each other without waiting, shares of
the card's own rate of matrix products, the time in which it was busy, its memory; exact evaluation of a whole test file. The
goals stand beside the figures.

Three more uses, each with a --help of its own:

    deepspeed --num_gpus 2 tools/benchmark.py checkpoints --config configs/lstm_lm.json   # what saving costs a training
    python tools/benchmark.py preprocess --corpus path/to/benchmark                       # by phase, with memory
    python tools/benchmark.py memory                                                      # a rank's, against the number of ranks
"""

from __future__ import annotations

import argparse
import sys

from parts.harness.uses import Use, first_word, run_use

from lm1b.errors import run_command

USES = {
    "checkpoints": Use("parts.benchmark.checkpoint_cost", "what saving and loading checkpoints costs, on tables of the real size"),
    "preprocess": Use("parts.benchmark.preprocessing", "preprocessing by phase and as a command, with its memory"),
    "memory": Use("parts.benchmark.table_memory", "a rank's memory against the number of ranks"),
}


def main() -> int | None:
    if first_word() in USES:
        return run_use(__doc__, USES)
    from parts.benchmark import everything  # what the other uses do not need

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything.add_arguments(parser)
    return everything.run(parser.parse_args())


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
