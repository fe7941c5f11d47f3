"""`tools/benchmark.py` without a use: every part that was asked for, cases by turns, into one object of figures."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm1b.console import now
from lm1b.data.text.benchmark import VOCABULARY_SIZE
from lm1b.devices import best_device
from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.files import write_json
from lm1b.training.run import prepare_process
from parts.benchmark.cases import CASES, EVALUATED, EVALUATION_GOAL, Case
from parts.benchmark.evaluation import measure_evaluation
from parts.benchmark.log_cost import measure_logging
from parts.benchmark.machine import describe_machine
from parts.benchmark.preprocessing import measure_preprocessing
from parts.benchmark.report import as_text
from parts.benchmark.resume import measure_resume
from parts.benchmark.wordlevel import import_tokenizers
from parts.harness.corpora import write_corpus_by_counts
from parts.harness.launching import ranks_command
from parts.harness.results import check_can_write, made_by
from parts.harness.shapes import SHAPES, shape_config
from parts.harness.turns import Workers

PARTS = ("training", "logging", "evaluation", "preprocessing", "resume")
GPU_PARTS = ("training", "evaluation")  # where not asked for otherwise: the others are the same on a machine without a GPU
MADE_UP_MEGABYTES, REPEATS_OF_PREPROCESSING = 40, 2


def shapes_of(device: str) -> list[str]:
    """The shapes that are measured on `cpu` or `cuda`."""
    return list(dict.fromkeys(case.shape for case in CASES[device]))


def training_workers(ranks: int, counts: str | None) -> Workers:
    """A warm process for each rank, with any number of threads."""
    script = str(Path(__file__).with_name("training.py"))
    launcher = [sys.executable, script] if ranks == 1 else ranks_command(ranks, script)
    return Workers([*launcher, *(["--counts", counts] if counts else [])], ranks, 1)


def measure_training(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Every case, its ways by turns; one process takes the turns of one rank on one thread and on two. Then the plain version.

    The plain version and two ranks have memory enough only once the single rank's process has ended.
    """
    cases = [case for case in CASES[arguments.device] if case.shape in (arguments.shapes or shapes_of(arguments.device))]
    is_against_plain = "plain" in arguments.against
    sizes = sorted({ranks for case in cases for ranks, _ in case.ways} | ({2} if is_against_plain else set()))
    figures: dict[str, Any] = {"training": [], "checkpoint": None}
    with contextlib.ExitStack() as stack:
        groups = {ranks: stack.enter_context(training_workers(ranks, arguments.counts)) for ranks in sizes}
        for case in cases:
            vocabulary = min(case.vocabulary, arguments.vocabulary)
            say(f"training: {case.shape} {case.precision}, {vocabulary:,} words {' '.join(case.settings)}")
            figures["training"] += _measure_case(case, groups, arguments, vocabulary)
            if case.saves:
                say("checkpoint")
                figures["checkpoint"] = groups[1].ask("checkpoint", folder=arguments.folder and str(arguments.folder))[0]
                figures["checkpoint"].pop("rank")
        if 1 in groups:
            groups[1].close()
        if is_against_plain:
            say("training: lstm_512 against plain PyTorch")
            figures["against_plain"] = measure_plain(arguments, groups[2])
    return figures


def _measure_case(case: Case, groups: dict[int, Workers], arguments: argparse.Namespace, vocabulary: int) -> list[dict[str, Any]]:
    chosen = [groups[ranks] for ranks, _ in case.ways]
    for group, (_, threads) in zip(chosen, case.ways, strict=True):
        settings = [*case.settings, *arguments.set, *([f"training.threads={threads}"] if threads else [])]
        group.tell("build", shape=case.shape, precision=case.precision, vocabulary=vocabulary, overrides=settings, triton=case.triton)
    for group in chosen:  # all build and warm up at the same time, and take turns from here
        group.answers()
    for _ in range(arguments.repeats):
        for group in chosen:
            group.ask("steps", count=1)
    results = [group.ask("result", profiled_steps=2)[0] for group in chosen]
    facts = {"settings": [*case.settings, *arguments.set], **({"goal": case.goal.as_json()} if case.goal else {})}
    return [{"shape": case.shape, **{key: value for key, value in found.items() if key != "rank"}, **facts} for found in results]


def measure_plain(arguments: argparse.Namespace, ours: Workers) -> dict[str, Any]:
    """LSTM-512 as a user of PyTorch would write it, beside our two ranks, by turns, each with both cores."""
    options = ["--counts", arguments.counts] if arguments.counts else []
    script = str(Path(__file__).with_name("plain.py"))
    with Workers([sys.executable, script, *options], 1, 2) as plain:
        ours.tell("build", shape="lstm_512", precision="bf16", vocabulary=arguments.vocabulary, overrides=["training.threads=1"])
        plain.ask("build", shape="lstm_512", vocabulary=arguments.vocabulary)
        ours.answers()
        for _ in range(arguments.repeats):
            plain.ask("steps", count=1)
            ours.ask("steps", count=1)
        of_plain, of_ours = plain.ask("result")[0], ours.ask("result", profiled_steps=1)[0]
    return {
        "plain": {key: value for key, value in of_plain.items() if key != "rank"},
        "ours_words_per_second_two_ranks_bf16": of_ours["words_per_second"],
        "ratio": round(of_ours["words_per_second"] / of_plain["words_per_second"], 2),
    }


def check_arguments(arguments: argparse.Namespace) -> None:
    """What would otherwise be found out minutes later. Raises UserError."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device cuda: torch {torch.__version__} finds no CUDA device here; use --device cpu, or a machine with a GPU and a torch "
            "built for it"
        )
    if arguments.device == "cuda" and "plain" in arguments.against:
        raise UserError("--against plain: this baseline is measured on the CPU; use --device cpu")
    if strangers := [shape for shape in arguments.shapes or [] if shape not in shapes_of(arguments.device)]:
        there = ", ".join(shapes_of(arguments.device))
        raise UserError(f"--shapes {' '.join(strangers)}: not measured on --device {arguments.device}; there: {there}")
    if arguments.repeats < 1:
        raise UserError(f"--repeats (={arguments.repeats}) must be at least 1")
    for name, path in (("--counts", arguments.counts), ("--corpus", arguments.corpus), ("--folder", arguments.folder)):
        if path and not Path(path).exists():
            raise UserError(f"{name} {path}: not there")
    check_can_write("--json", arguments.json)
    check_can_write("--table", arguments.table)
    if "hf-wordlevel" in arguments.against:
        import_tokenizers()


def run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    started_at = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - started_at:5.0f} s] {what}", file=sys.stderr, flush=True)

    device = torch.device(arguments.device)
    prepare_process(shape_config("lstm_512", "fp32", ["training.threads=1"]), single_process(device))
    say("machine")
    figures: dict[str, Any] = {
        **made_by(),
        "device": device.type,
        "machine": describe_machine(device),
    }
    if "training" in arguments.only:
        figures |= measure_training(arguments, say)
    if "logging" in arguments.only:
        say("logs")
        figures["logging"] = measure_logging()
    if "evaluation" in arguments.only:
        say("exact evaluation")
        whole: dict[str, Any] = {"predictions": EVALUATED, "goal": EVALUATION_GOAL} if device.type == "cuda" else {}
        figures["evaluation"] = measure_evaluation(arguments.vocabulary, 512, 3, device, **whole)
    if "preprocessing" in arguments.only:
        say("preprocessing")
        with tempfile.TemporaryDirectory(prefix="lm1b-corpus-") as folder:
            corpus = arguments.corpus or write_corpus_by_counts(Path(folder), arguments.counts, MADE_UP_MEGABYTES)
            figures["preprocessing"] = measure_preprocessing(
                corpus, ["phases", "commands"], repeats=REPEATS_OF_PREPROCESSING, against="hf-wordlevel" in arguments.against
            )
    if "resume" in arguments.only:
        say("start and resumption")
        figures["resume"] = measure_resume(arguments.vocabulary, arguments.folder)
    figures["finished_at"] = now()
    figures["seconds"] = round(time.perf_counter() - started_at)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--table", type=Path, help="also write the table here, Markdown")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="a GPU if there is one where not given")
    parser.add_argument("--counts", help=".npy file of training word counts")
    parser.add_argument("--corpus", type=Path, help="text to preprocess, a folder in the benchmark's layout (default: made-up words)")
    parser.add_argument("--against", action="append", default=[], choices=["plain", "hf-wordlevel"], help="measure a baseline beside ours")
    parser.add_argument("--only", nargs="+", choices=PARTS, help=f"default: all; on a GPU {' and '.join(GPU_PARTS)}")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="default: all that are measured on the device")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each case")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="on every shape, but for --against plain")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY_SIZE, help="words of the large vocabulary")
    parser.add_argument("--folder", type=Path, help="where there is room for 20 GB of checkpoints (default: the temporary folder)")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the table, write the files."""
    arguments.device = arguments.device or best_device().type
    arguments.only = arguments.only or (GPU_PARTS if arguments.device == "cuda" else PARTS)
    check_arguments(arguments)
    os.environ["DS_ACCELERATOR"] = arguments.device  # of the processes that take the steps
    figures = run_benchmark(arguments)
    text = as_text(figures)
    print(text)
    if arguments.json:
        write_json(arguments.json, figures)
    if arguments.table:
        arguments.table.parent.mkdir(parents=True, exist_ok=True)
        arguments.table.write_text(text + "\n")
