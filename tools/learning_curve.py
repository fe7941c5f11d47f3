"""A learning curve over several seeds: exact perplexity of held-out text while a model trains, on a CPU or a GPU, and the time to 150.

    python tools/learning_curve.py --corpus NEWS_MIX --seeds 1 2 --json cuda.json
    python tools/learning_curve.py --corpus NEWS_MIX --seeds 1 2 --device cpu --json cpu.json --beside cuda.json

1. The corpus, a folder in the benchmark's layout, is preprocessed where that has not been done.
2. Each seed trains by the real step for as long as the config says. At `--points` even stretches of it the clock stands still, and the
   exact evaluator's scorer gives the held-out text's word perplexity, averaged weights, on the same device. The test file, number 0, is not
   looked at; of the others the first is scored, or as many as `--held-out` says.
3. The JSON holds each seed's curve (step, words, wall seconds of training, perplexity) and the seconds to perplexity 150.
4. `--beside` another such file: after equal words, is the difference of the means within the spread of the seeds?

Resumable: a seed that the JSON holds is not trained again. One process, one rank.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from parts.harness.launching import REPOSITORY
from parts.harness.results import made_by
from parts.harness.scored import first_sentences
from parts.harness.scored_training import ScoredTraining
from parts.learning_curve.compare import as_text, check_comparable, compare, seconds_to

from lm1b.config import Config, load_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.data.text.benchmark import HELD_OUT_FOLDER
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.devices import best_device
from lm1b.distributed import Ranks
from lm1b.errors import UserError, run_command
from lm1b.evaluation.scoring.texts import ScoredText, text_of_files
from lm1b.files import read_json, write_json
from lm1b.precision import DTYPES, resolve_precision
from lm1b.processor import cpu_name
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.run import Run, prepare_process

TARGET = 150.0  # the perplexity whose time is told


def held_out_text(corpus: Path, tokens: TokenDirectory, count: int, sentences: int | None) -> ScoredText:
    """The first held-out files but the test file. Raises UserError where there are none."""
    files = sorted(path for path in (corpus / HELD_OUT_FOLDER).glob("news.en.heldout-*-of-*") if "heldout-00000-" not in path.name)
    if not files:
        raise UserError(f"{corpus}: no {HELD_OUT_FOLDER}/news.en.heldout-00001-of-K; --corpus takes a folder in the benchmark's layout")
    text = text_of_files(tokens.vocabulary, files[:count])
    return first_sentences(text, sentences) if sentences else text


def describe(config: Config, precision: str, text: ScoredText, tokens: TokenDirectory, ranks: Ranks) -> dict[str, Any]:
    """What is trained and scored, and where: what does not change from seed to seed."""
    sections = {name: config.as_json()[name] for name in ("batches", "model", "softmax", "tables", "optimizer", "schedule")}
    return {
        "device": ranks.device.type,
        "machine": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "evaluation": {"precision": config.evaluation.precision, "state": "carry", "lanes": config.evaluation.lanes},
        "length": {"epochs": config.training.epochs, "total_steps": config.training.total_steps, "ema_decay": config.training.ema_decay},
        "text": {"files": [Path(file).name for file in text.files], "sentences": text.sentences, "predictions": text.predictions},
        "vocabulary": tokens.fingerprint,
        **sections,
    }


def train_seed(config: Config, ranks: Ranks, text: ScoredText, num_points: int) -> dict[str, Any]:
    """One seed's curve."""
    run = Run(config, ranks)
    training = ScoredTraining(run, text, DTYPES[config.evaluation.precision], time.perf_counter)
    curve = []
    for point in training.points(round(number * run.total_steps / num_points) for number in range(1, num_points + 1)):
        told = point.word_perplexity and round(point.word_perplexity, 3)
        curve.append({"step": point.step, "words": point.words, "seconds": round(point.seconds, 2), "word_perplexity": told})
        print(f"  seed {config.run.seed}: step {point.step} of {run.total_steps}, {point.seconds:.1f} s, perplexity {told}", flush=True)
    run.close()
    run.training_step.engine.close()
    reached = seconds_to(curve, TARGET)
    return {
        "total_steps": run.total_steps,
        "skipped": training.skipped,
        f"seconds_to_perplexity_{TARGET:g}": None if reached is None else round(reached, 2),
        "curve": curve,
    }


def train_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every seed that the JSON does not hold yet; it is written after each."""
    os.environ["DS_ACCELERATOR"] = arguments.device
    corpus, name = Path(arguments.corpus), Path(arguments.corpus).resolve().name
    tokens_folder = arguments.tokens or Path("data") / f"tokens_{name}"
    fixed = ["corpus.kind=lm1b", f"corpus.path={json.dumps(str(corpus))}", f"tokens.directory={json.dumps(str(tokens_folder))}"]
    tokens = preprocess(load_config(arguments.config, [*fixed, *arguments.set]))
    text = held_out_text(corpus, tokens, arguments.held_out, arguments.sentences)
    ranks = start_ranks()
    if ranks.size > 1:
        raise UserError("tools/learning_curve.py runs as one process; start it with python, not with a launcher of ranks")
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="lm1b-curve-") as folder:
            config = load_config(arguments.config, [*fixed, *arguments.set, f"run.seed={seed}", f"run.directory={json.dumps(folder)}"])
            prepare_process(config, ranks)
            precision = resolve_precision(config.training.precision, ranks.device)
            experiment = describe(config, precision, text, tokens, ranks) | {"points": arguments.points}
            found = _so_far(arguments.json, experiment)
            if str(seed) not in found["seeds"]:
                found["seeds"][str(seed)] = train_seed(config, ranks, text, arguments.points)
                write_json(arguments.json, found | made_by())
    stop_ranks()
    return read_json(arguments.json)


def _so_far(path: Path, experiment: dict[str, Any]) -> dict[str, Any]:
    """What the JSON holds. Raises UserError where it is of something else."""
    found = read_curves(path) if path.exists() else {**made_by(), "experiment": experiment, "seeds": {}}
    if found["experiment"] != experiment:
        raise UserError(f"{path}: holds the curves of another experiment, or of another machine; give another file")
    return found


def read_curves(path: Path) -> dict[str, Any]:
    """A file of this program's. Raises UserError where it is something else."""
    found = read_json(path)
    if not isinstance(found, dict) or not {"experiment", "seeds"} <= found.keys():
        raise UserError(f"{path}: not a file of tools/learning_curve.py")
    return found


def compare_with(path: Path, ours: dict[str, Any]) -> str:
    """The comparison with another file's curves, which `ours` then holds too."""
    theirs = read_curves(path)
    check_comparable(ours["experiment"], theirs["experiment"], str(path))
    rows = compare(*([seed["curve"] for seed in group["seeds"].values()] for group in (ours, theirs)))
    ours["beside"] = {"experiment": theirs["experiment"], "seeds": theirs["seeds"], "rows": [row.as_json() for row in rows]}
    names = [f"{group['experiment']['device']}, {group['experiment']['precision']}" for group in (ours, theirs)]
    return as_text(rows, names[0], names[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="folder in the benchmark's layout; without it only the JSON there is, is compared")
    parser.add_argument("--config", default=str(REPOSITORY / "configs" / "lstm_news.json"))
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="on the config")
    parser.add_argument("--tokens", type=Path, help="what training reads (default: data/tokens_ and the corpus's name)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--points", type=int, default=12, help="how often the text is scored")
    parser.add_argument("--held-out", type=int, default=1, help="held-out files scored, from number 1 on")
    parser.add_argument("--sentences", type=int, help="of them, the first so many; all where not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="a GPU if there is one where not given")
    parser.add_argument("--json", type=Path, required=True, help="the curves; seeds that it holds are not trained again")
    parser.add_argument("--beside", type=Path, help="another such file to compare with")
    arguments = parser.parse_args()
    arguments.device = arguments.device or best_device().type
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device found here; use --device cpu")
    for name in ("points", "held_out", "sentences"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} (={value}) must be at least 1")
    if not arguments.corpus and not (arguments.json.exists() and arguments.beside):
        raise UserError("--corpus is missing: without it there must be a --json with curves and another file --beside it")
    found = train_all(arguments) if arguments.corpus else read_curves(arguments.json)
    if arguments.beside:
        print(compare_with(arguments.beside, found))
        write_json(arguments.json, found)


if __name__ == "__main__":
    run_command(main)
