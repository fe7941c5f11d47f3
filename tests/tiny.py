"""A tiny corpus in the benchmark's layout, made up, in which the next word can be learnt; configs and ranks to go with it."""

from __future__ import annotations

import json
import os
import random
import socket
from pathlib import Path
from typing import Any

from forked import run_forked

from lm1b.launchers import without_place

REPOSITORY = Path(__file__).resolve().parent.parent
WITHOUT_MLFLOW = REPOSITORY / "tests" / "without_mlflow"
NUM_WORDS = 240


def write_corpus(folder: Path, sentences: int = 1500, seed: int = 5) -> Path:
    """Two training files and two held-out ones of made-up sentences: each word mostly decides the next."""
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(NUM_WORDS)]

    def sentence() -> str:
        word = min(int(generator.paretovariate(0.8)) - 1, NUM_WORDS - 1)
        out = []
        for _ in range(generator.randint(4, 14)):
            out.append(words[word])
            word = (word * 7 + 3) % NUM_WORDS if generator.random() < 0.8 else min(int(generator.paretovariate(0.8)) - 1, NUM_WORDS - 1)
        return " ".join(out)

    def write(path: Path, count: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(sentence() + "\n" for _ in range(count)), encoding="utf-8")

    for number in (1, 2):
        write(folder / "training-monolingual.tokenized.shuffled" / f"news.en-0000{number}-of-00003", sentences // 2)
    for number in (0, 1):
        write(folder / "heldout-monolingual.tokenized.shuffled" / f"news.en.heldout-0000{number}-of-00002", sentences // 15)
    return folder


def tiny_settings(folder: Path, run: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A config's JSON for the corpus and tokens under `folder`; sections override keys, as in training={"micro_batches": 2}."""
    settings: dict[str, dict[str, Any]] = {
        "run": {"directory": str(folder / run), "seed": 3},
        "corpus": {"kind": "lm1b", "path": str(folder / "corpus")},
        "tokens": {"directory": str(folder / "tokens"), "processes": 1},
        "batches": {"lanes": 8, "steps": 10, "block_tokens": 500},
        "model": {"cell": "lstm", "embedding": 12, "hidden": 24, "projection": 16},
        "softmax": {"samples": 60},
        "optimizer": {"learning_rate": 0.2},
        "training": {"total_steps": 50, "precision": "fp32", "threads": 1, "log_every": 1, "gap_every": 25},
        "checkpoints": {"every": 20, "keep_last": 5},
        "logging": {"ceiling": False},  # 0.2 s of each start
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return settings


def write_settings(folder: Path, run: str, **sections: dict[str, Any]) -> Path:
    """The same as a config file; returns its path."""
    path = folder / f"{run}.json"
    path.write_text(json.dumps(tiny_settings(folder, run, **sections)))
    return path


def settings_in(tiny_folder: Path, directory: Path, **sections: Any) -> Path:
    """A config of the tiny corpus whose run lies in `directory`, as a file beside it."""
    settings = tiny_settings(tiny_folder, "unused", **sections)
    settings["run"]["directory"] = str(directory)
    path = directory.with_suffix(".json")
    path.write_text(json.dumps(settings))
    return path


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This process's environment, one thread a process, no ranks of somebody else's, no word of the `make` that runs the tests."""
    ours = {name: value for name, value in without_place(os.environ).items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return {**ours, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def environments(num_ranks: int) -> list[dict[str, str]]:
    """Of ranks that see each other, as a launcher gives them."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks), "LOCAL_SIZE": str(num_ranks)}
    return [environment(RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in range(num_ranks)]


def run_ranks(arguments: list[str], num_ranks: int, timeout: float = 240) -> str:
    """Run `python *arguments` as `num_ranks` real processes that see each other; what they printed. Fails where one fails."""
    done = run_forked(arguments[0], arguments[1:], environments(num_ranks), REPOSITORY, timeout=timeout)
    assert done.returncode == 0, f"a rank ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr
