"""What tests/test_sequence_ranks.py has two ranks do: `python sequence_ranks_worker.py FOLDER`, on each of them.

Rank 0 works in FOLDER/ranks, where the test has put what one process has begun; the other one is given FOLDER/nowhere. Each writes
what it saw into FOLDER/report_<rank>.json. The test does the same in one process, with what is defined here.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from lm1b.distributed import Ranks
from lm1b.errors import UserError
from lm1b.sequence_tasks.config import TaskExperiment
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.data.task import Batch, Task, constant_answer_nats, stored
from lm1b.sequence_tasks.experiment.engine_run import EngineRun
from lm1b.sequence_tasks.experiment.resumable_run import Job, train_run
from lm1b.sequence_tasks.experiment.trainer import SequenceRun
from lm1b.strict import parse

UPDATES, HALF = 8, 4
RATE, WILD_RATE = 0.01, 1e30
CASES: dict[str, dict[str, Any]] = {
    "number": {"optimizer": {"kind": "adam"}},
    "label": {"model": {"cell": "lstm", "bidirectional": True}, "optimizer": {"kind": "rmsprop", "momentum": 0.5, "clip_norm": 0.05}},
    "label_per_step": {
        "model": {"cell": "irnn", "layers": 2},
        "optimizer": {"kind": "sgd", "momentum": 0.9, "clip_norm": None},
        "training": {"norm_stabilizer": 0.1},
    },
}
NO_PENALTY = {"training": {"norm_stabilizer": 0.0}}  # whose squares would be infinite where the loss's gradient is not


def case(name: str, **more: dict[str, Any]) -> tuple[TaskExperiment, Task]:
    """Config and data of one; more: sections of the config, whose keys override."""
    value: dict[str, dict[str, Any]] = {
        "run": {"directory": "unused", "seeds": [1]},
        "task": {"kind": "adding", "steps": 6, "train_size": 40, "held_out_size": 300},
        "model": {"cell": "irnn", "hidden": 8, "input_weight": "glorot"},
        "optimizer": {"learning_rate": RATE},
        "training": {"updates": UPDATES, "batch": 6, "evaluate_every": 2, "max_skipped": 3},
    }
    for sections in (CASES[name], more):
        for section, keys in sections.items():
            value[section] = {**value.get(section, {}), **keys}
    config = parse(TaskExperiment, value)
    return config, load_task(config.task) if name == "number" else labelled(name == "label_per_step")


def labelled(per_step: bool) -> Task:
    """Sequences of 1 to 9 steps, of labels that their first input decides; a sixth of them is not asked for."""
    generator = torch.Generator().manual_seed(7)
    splits = []
    for size in (40, 300, 20):
        sequences = [torch.randn(int(torch.randint(1, 10, (1,), generator=generator)), 3, generator=generator) for _ in range(size)]
        labels = [((sequence[:, 0] > 0) + 2 * (sequence[:, 1] > 0)).long() for sequence in sequences]
        unasked = [torch.where(torch.rand(len(label), generator=generator) < 1 / 6, -1, label) for label in labels]
        splits.append(stored(sequences, unasked if per_step else torch.stack([label[0] for label in labels])))
    train, dev, test = splits
    return Task("made up", "label_per_step" if per_step else "label", 3, 4, train, dev, test, constant_answer_nats(train.targets), {})


def spoilt_updates(run: SequenceRun, is_guilty: bool, factor: float) -> list[tuple[int, int, bool]]:
    """Skipped, skipped in a row, and whether weights changed, over three updates, in whose second the guilty's inputs are multiplied."""
    seen = []
    for number in range(3):
        before = [parameter.detach().clone() for parameter in run.parameters]
        batch = run.next_batch()
        if number == 1 and is_guilty:
            run.next_batch = lambda batch=batch: Batch(batch.x_TBD * factor, batch.lengths_B, batch.targets)  # type: ignore[method-assign]
        run.update()
        run.__dict__.pop("next_batch", None)
        changed = not all(torch.equal(*pair) for pair in zip(before, run.parameters, strict=True))
        seen.append((run.skipped, run.skipped_in_a_row, changed))
    return seen


def message_of(action: Any) -> str:
    """What a user would be told."""
    try:
        action()
    except UserError as error:
        return str(error)
    return "no error"


def do_case(name: str, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """One case's runs -> their results."""
    config, task = case(name)

    def train(where: str, updates: int, rate: float = RATE, config: TaskExperiment = config) -> dict[str, Any]:
        return train_run(config, task, Job(1, rate, updates, folder / name / where, updates == UPDATES), ranks)

    found = {"whole": train("whole", UPDATES)}
    train("parts", HALF)
    found["parts"] = train("parts", UPDATES)
    found["begun_by_one"] = train("begun_by_one", UPDATES)
    train("begun_by_ranks", HALF)
    found["again"] = train("whole", UPDATES)
    if name == "number":
        often = case(name, training={"evaluate_every": 1})[0]
        found["wild"] = train("wild", 20, WILD_RATE, often)
        train("wild parts", 2, WILD_RATE, often)
        found["wild parts"] = train("wild parts", 20, WILD_RATE, often)
    return found


def main(folder: Path) -> None:
    from lm1b.sequence_tasks.experiment.cell_runs import CellRuns, _load_everywhere
    from lm1b.sequence_tasks.experiment.ranks import ranks_together
    from lm1b.workers import Workers

    with ranks_together() as ranks:
        here = folder / ("ranks" if ranks.is_first else "nowhere")
        report: dict[str, Any] = {"cases": {name: do_case(name, ranks, here) for name in CASES}}
        for name, factor in (("NaN", math.nan), ("no norm", 1e22)):
            run = EngineRun(*case("label_per_step", **NO_PENALTY), 1, RATE, ranks)
            report[name] = spoilt_updates(run, ranks.rank == 1, factor)
            run.close()
        report["batch"] = message_of(lambda: EngineRun(*case("number", training={"batch": 7}), 1, RATE, ranks))
        report["clip_value"] = message_of(lambda: EngineRun(*case("number", optimizer={"clip_value": 0.5}), 1, RATE, ranks))
        cut_off = here / "cut off"
        if ranks.is_first:
            shutil.copytree(here / "number" / "begun_by_ranks", cut_off)
            (cut_off / "run.safetensors").write_bytes((cut_off / "run.safetensors").read_bytes()[:-100])
        report["cut off"] = message_of(lambda: train_run(*case("number"), Job(1, RATE, UPDATES, cut_off), ranks))
        other = case("number", task={"seed": 1 + ranks.rank})[0].task
        report["data"] = message_of(lambda: _load_everywhere(other, ranks))
        search = {"learning_rates": [0.001, RATE], "shares": [0.5, 1.0]}
        config, _ = case("number", search=search, run={"directory": str(here / "searched"), "seeds": [1, 2]})
        report["said"] = []
        with Workers(1) as workers:
            report["searched"] = CellRuns(config, workers, report["said"].append, ranks).run()
        (folder / f"report_{ranks.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
