"""Made-up results of the papers' tasks, in the shape of `results.json`: curves by a formula, so that a table's verdicts are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm1b.sequence_tasks.papers.kept import shorten, write_kept
from lm1b.sequence_tasks.papers.kept_result import KeptResult

GENERATED = {"train_size": 100_000, "held_out_size": 10_000, "seed": 1}
FACTS = {
    "adding": ("adding, T = 150", "number", 1 / 6, {"data": "made from seed 1"}),
    "pixel_mnist": ("pixel MNIST", "label", 2.3, {"data": "MNIST, the four idx files"}),
    "phones": ("phones, 39 labels", "label_per_step", 3.1, {"layout": "speakers' folders", "split": "speakers dealt by seed 1"}),
    "actions": ("actions, wrist accelerometer", "label", 1.9, {"layout": "wrist accelerometer"}),
}
RATES = [0.0001, 0.0003, 0.001, 0.003, 0.01]


def made_result(
    task: dict[str, Any], cell: str, errors: list[float | None], *, model: dict[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    """As launch/sequence_task.py leaves it. errors: on test, one a seed; None: the seed diverged. sections: of the config, by name."""
    kind = "adding" if task["kind"] == "multiplication" else task["kind"]
    name, asked, baseline, sources = FACTS[kind]
    if "steps" in task:
        name, baseline = f"{task['kind']}, T = {task['steps']}", 1 / 6 if task["kind"] == "adding" else 7 / 144
    if task.get("permuted"):
        name = f"permuted {name}"
    config = {
        "run": {"directory": "/somewhere/of/mine", "seeds": list(range(1, len(errors) + 1))},
        "task": {**GENERATED, **task} if "steps" in task else task,
        "model": {
            "cell": cell, "layers": 1, "hidden": 100, "identity_scale": 1.0, "forget_bias": 1.0, "bidirectional": False, **(model or {}),
        },
        "optimizer": {"kind": "adam", "learning_rate": 0.001, "clip_norm": 1.0, "clip_value": None, **sections.get("optimizer", {})},
        "training": {"updates": 10_000, "batch": 16, "norm_stabilizer": 0.0, "precision": "fp32", **sections.get("training", {})},
    }  # fmt: skip

    def run(seed: int, error: float | None, rate: float, updates: int) -> dict[str, Any]:
        scale = baseline if asked == "number" else 1.0
        start = scale if asked == "number" else 0.9
        curve = []
        for k in range(1, 121):
            now = None if error is None and k > 60 else start + (min(error or scale, start) - start) * min(1.0, k / 80 + 0.03 * seed)
            loss = None if now is None else now if asked == "number" else baseline * now
            curve.append(
                {"updates": updates * k // 120, "train_loss": loss, "dev_loss": loss, "dev_error": now, "gradient_norm": 1.23456789}
            )
        found = {"seed": seed, "learning_rate": rate, "updates": updates, "diverged": error is None, "skipped": 0, "cpu_seconds": 12.3}
        finite = [point for point in curve if point["dev_error"] is not None]
        best = min(finite, key=lambda point: point["dev_error"])
        found |= {"best_updates": best["updates"], "dev_error": best["dev_error"]}
        return {**found, "curve": curve, **({} if error is None else {"test_loss": error, "test_error": error})}

    median = sorted(error for error in [*errors, 1.0] if error is not None)[0]
    tried = [(rate, None if rate > 0.005 and cell != "np_rnn" else median * (1 + abs(k - 2))) for k, rate in enumerate(RATES)]
    runs = [run(seed, error, 0.001, config["training"]["updates"]) for seed, error in enumerate(errors, 1)]
    return {
        "config": config,
        "learning_rate": 0.001,
        "search": {"best": 0.001, "rungs": [{"updates": 2_500, "runs": [run(0, error, rate, 2_500) for rate, error in tried]}]},
        "runs": runs,
        "summary": {"runs": len(runs), "diverged": sum(error is None for error in errors)},
        "task": {
            "name": name, "asked": asked, "baseline_loss": baseline, "sequences": {"train": 50_000, "dev": 5_000, "test": 10_000},
            "sources": sources,
        },
        "provenance": {
            "command": f"python launch/sequence_task.py --config configs/tasks/{task['kind']}_{cell}.json", "revision": "0123456789abcdef",
            "torch": "2.13.0", "finished_at": "2026-11-22T12:00:00+00:00",
        },
    }  # fmt: skip


def kept(result: dict[str, Any]) -> KeptResult:
    """A result as it is read back from its file."""
    return KeptResult(shorten(result, "made"))


ADDING_150, ADDING_200 = ({"kind": "adding", "steps": steps} for steps in (150, 200))
PIXELS = {"kind": "pixel_mnist", "path": "/somewhere/of/mine/mnist", "permuted": False}
PHONES = {"kind": "phones", "path": "/somewhere/of/mine/timit_sample", "labels": 39}
ACTIONS = {"kind": "actions", "path": "/somewhere/of/mine/wrist_motion"}
SOLVES, FAILS = [0.001, 0.002, 0.0015, 0.003, 0.004], [0.166, 0.167, 0.165, 0.168, 0.1666]


def keep_made_results(folder: Path) -> None:
    """A folder of kept results: one or more a task, some with seeds that diverged, a guard, bf16."""
    two_layers, both_ways = {"layers": 2, "hidden": 500}, {"layers": 5, "hidden": 500, "bidirectional": True}
    results = {
        "adding_150_irnn": made_result(ADDING_150, "irnn", SOLVES),
        "adding_150_lstm": made_result(ADDING_150, "lstm", [0.0005, 0.0018, 0.0006, 0.0007, 0.0008]),
        "adding_150_tanh_rnn": made_result(ADDING_150, "tanh_rnn", FAILS),
        "adding_150_relu_rnn": made_result(ADDING_150, "relu_rnn", [0.166, None, 0.167, None, 0.165]),
        "adding_150_np_rnn": made_result(ADDING_150, "np_rnn", FAILS),
        "adding_150_irnn_stabilized": made_result(ADDING_150, "irnn", SOLVES, training={"norm_stabilizer": 50.0}),
        "adding_150_irnn_bf16": made_result(ADDING_150, "irnn", [0.01, 0.02, 0.03, 0.04, 0.05], training={"precision": "bf16"}),
        "adding_200_irnn": made_result(ADDING_200, "irnn", [0.001, None, 0.002, None, 0.1]),
        "adding_200_tanh_rnn": made_result(ADDING_200, "tanh_rnn", FAILS),
        "adding_750_irnn": made_result({"kind": "adding", "steps": 750}, "irnn", FAILS),
        "multiplication_irnn": made_result({"kind": "multiplication", "steps": 150}, "irnn", [0.001, 0.002, 0.003]),
        "pixel_mnist_irnn": made_result(PIXELS, "irnn", [0.09]),
        "pixel_mnist_tanh_rnn": made_result(PIXELS, "tanh_rnn", [0.6]),
        "permuted_irnn": made_result({**PIXELS, "permuted": True}, "irnn", [0.2]),
        "actions_irnn": made_result(ACTIONS, "irnn", [0.31, 0.35, 0.33]),
        "actions_np_rnn": made_result(ACTIONS, "np_rnn", [0.21, 0.25, 0.23]),
        "actions_lstm": made_result(ACTIONS, "lstm", [0.22, 0.24, 0.26]),
    }
    for cell, errors in {"irnn": [0.4, 0.42], "lstm": [0.41, 0.43], "tanh_rnn": [0.45, 0.46]}.items():
        model = {"identity_scale": 0.01} if cell == "irnn" else {}
        results[f"phones_{cell}"] = made_result(PHONES, cell, list(errors), model={**two_layers, **model})
        results[f"phones_both_ways_{cell}"] = made_result(PHONES, cell, list(errors), model={**both_ways, **model})
    results["phones_irnn_identity"] = made_result(PHONES, "irnn", [0.5, 0.52], model=two_layers)
    for name, result in results.items():
        write_kept(folder / f"{name}.json", shorten(result, name))


def made_language_models(seeds: int, epochs: float | None = None) -> dict[str, Any]:
    """As tools/paper_results.py language-models writes it: IRNN 0.5 % behind the LSTM, tanh RNN 4 % behind the IRNN; seeds 0.1 % apart."""
    levels = {"lstm_256": 100.0, "irnn_512": 100.5, "irnn_4x256": 100.5, "tanh_512": 104.5, "tanh_4x256": 104.5}

    def run(level: float, seed: int) -> dict[str, Any]:
        perplexity = level * (1 + 0.001 * seed)
        texts = [("validation", "validation-00001"), ("test", "test-00000"), ("files", "news.en.heldout-00010-of-00050")]
        scored = [{"split": split, "files": [file], "word_perplexity": perplexity} for split, file in texts]
        settings = ["model.cell=irnn", 'run.directory="/somewhere/of/mine"', f"run.seed={seed}"]
        return {"seed": seed, "epochs": epochs, "settings": settings, "scored": scored, "last_metrics": {"words": 3_299_840}}

    budget = f"_{epochs:g}_epochs" if epochs else ""
    cells = {
        cell: {"learning_rate": 0.002, "runs": {f"{cell}_seed_{seed}{budget}": run(level, seed) for seed in range(1, seeds + 1)}}
        for cell, level in levels.items()
    }
    value = {
        "command": "python tools/paper_results.py language-models",
        "revision": "0123456789abcdef",
        "config": "configs/papers/language_model.json",
    }
    return json.loads(json.dumps({**value, "cells": cells}))
