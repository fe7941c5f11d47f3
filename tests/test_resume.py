"""A run that was killed, moved or changed goes on: bit for bit where nothing changed, within rounding on other machinery."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_settings, write_corpus
from training_runs import assert_same_end, events, job, launch, losses, run_launches

from lm1b.config import Config, parse_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.files import read_json_lines
from lm1b.strict import Section
from lm1b.training.checkpoints.checkpoint import checkpoint_folder, list_checkpoints
from lm1b.training.resume import FIXED_SECTIONS
from lm1b.training.run import Run
from lm1b.training.run_state import run_state

SAVE_EVERY = 13  # neither a divisor of the epoch's 189 steps nor a multiple of the 4 steps between two lines of the log
STEPS = 30
# Of a line of metrics.jsonl: what the clock and memory say.
MEASURED = (
    "words_per_second", "elapsed_seconds", "peak_memory_mb", "waiting_seconds", "slowest", "waiting_for_slowest", "step_seconds",
    "share_of_ceiling",
)  # fmt: skip
WHOLE = "whole"  # the run that nothing happens to, 40 steps of one rank, stage 1, fp32
CHAIN = "chain"

# name: ranks, ZeRO stage, precision, optimizer, whose gradient or state is lost in the sixth step
KILLED = {
    "killed_1": (1, 2, "fp32", {"kind": "adagrad"}, "stack.layers.1.weight_hh_l0"),
    "killed_2": (2, 1, "bf16", {"kind": "adam", "learning_rate": 0.003}, "state"),
}
# The same, but the end of a shorter run is where it stops.
STOPPED = {
    "stopped_1": (1, 1, "bf16", {"kind": "sgd", "momentum": 0.9, "learning_rate": 0.05}, "output_table"),
    "stopped_2": (2, 3, "bf16", {"kind": "adagrad"}, "projection.weight"),
    "stopped_3": (2, 2, "fp32", {"kind": "adam", "learning_rate": 0.003}, "loss"),
}


def resumed_job(folder: Path, run: str, case: str, total_steps: int = STEPS) -> dict[str, Any]:
    _, stage, precision, optimizer, lost = {**KILLED, **STOPPED}[case]
    training = {"total_steps": total_steps, "zero_stage": stage, "precision": precision, "micro_batches": 2, "gap_every": 10}
    # A line every step where the short run's end would add one of its own.
    training |= {"log_every": 4 if case in KILLED else 1, "ema_decay": 0.9}
    return job(
        folder,
        run,
        model={"cell": "irnn", "embedding": 12, "hidden": 24, "projection": 16, "dropout": 0.2, "layers": 2},
        optimizer=optimizer,
        schedule={"warmup_updates": 9, **({"shape": "cosine"} if case in KILLED else {})},
        training=training,
        checkpoints={"every": SAVE_EVERY},
        poison={"place": lost, "first": 5, "end": 6},
    )


def part_of_chain(folder: Path, total_steps: int, stage: int, **sections: dict[str, Any]) -> dict[str, Any]:
    training = {"total_steps": total_steps, "zero_stage": stage, "gap_every": None, **sections.pop("training", {})}
    return job(folder, CHAIN, training=training, **sections)


@pytest.fixture(scope="module")
def trained(tiny_folder: Path) -> list[Any]:
    """Everything below, in one plan."""
    here = {ranks: [case for case in KILLED if KILLED[case][0] == ranks] for ranks in (1, 2)}
    straight = {ranks: [resumed_job(tiny_folder, f"{case}_straight", case) for case in here[ranks]] for ranks in here}
    rest = {ranks: [resumed_job(tiny_folder, case, case) for case in here[ranks]] for ranks in here}
    stopped: dict[int, list[Any]] = {1: [], 2: []}
    for case, (ranks, *_) in STOPPED.items():
        stopped[ranks] += [
            resumed_job(tiny_folder, f"{case}_straight", case),
            resumed_job(tiny_folder, case, case, total_steps=17),
            resumed_job(tiny_folder, case, case),
        ]
    kills = [
        launch(ranks, [resumed_job(tiny_folder, case, case)], checkpoint_folder(tiny_folder / case, SAVE_EVERY) / "manifest.json")
        for case, (ranks, *_) in KILLED.items()
    ]
    otherwise: dict[str, dict[str, Any]] = {
        "training": {"precision": "bf16", "gap_positions": 100},
        "schedule": {"final_fraction": 0.5},
        "checkpoints": {"keep_last": 3},
        "evaluation": {"lanes": 16},
    }
    whole = job(tiny_folder, WHOLE, training={"total_steps": 40, "gap_every": None})
    shortened = [job(tiny_folder, "shortened", training={"total_steps": steps, "gap_every": None}) for steps in (6, 4)]
    plan = [
        *kills,
        launch(1, [whole, part_of_chain(tiny_folder, 8, 1), *straight[1], *stopped[1]]),
        launch(2, [part_of_chain(tiny_folder, 16, 2, training={"micro_batches": 2}), *straight[2], *rest[2], *stopped[2]]),
        launch(4, [part_of_chain(tiny_folder, 24, 3)]),
        launch(1, [part_of_chain(tiny_folder, 32, 1), part_of_chain(tiny_folder, 40, 1, **otherwise), *rest[1], *shortened]),
    ]
    return run_launches(tiny_folder, "resume", plan)


def told(folder: Path, run: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, less what was measured."""
    lines = read_json_lines(folder / run / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def counters(folder: Path, run: str) -> dict[str, Any]:
    """state.json of the last checkpoint, less times and the run's own directory."""
    state = list_checkpoints(folder / run)[-1].state()
    del state["counts"]["elapsed_seconds"], state["config"]["run"]["directory"]
    return state


@pytest.mark.parametrize("case", [*KILLED, *STOPPED])
def test_resuming_is_bitwise(tiny_folder: Path, trained: list[Any], case: str) -> None:
    straight = f"{case}_straight"
    assert_same_end(tiny_folder, straight, case, 0)
    assert counters(tiny_folder, straight) == counters(tiny_folder, case)
    assert told(tiny_folder, straight) == told(tiny_folder, case)
    state = counters(tiny_folder, case)
    assert (state["step"], state["updates"], state["counts"]["skipped"]) == (STEPS, STEPS - 1, 1)
    assert state["counts"]["lanes_restarted"] == (1 if {**KILLED, **STOPPED}[case][-1] == "state" else 0)


@pytest.mark.parametrize("case", KILLED)
def test_a_killed_run_goes_on_at_its_newest_checkpoint(tiny_folder: Path, trained: list[Any], case: str) -> None:
    starts = [text for text in events(tiny_folder, case) if text.startswith(("starting of", "going on at step"))]
    assert len(starts) == 2
    # The kill may have come so late that one more checkpoint was there.
    assert starts[1].startswith((f"going on at step {SAVE_EVERY} of", f"going on at step {2 * SAVE_EVERY} of"))


def test_a_run_made_as_short_as_it_is_has_finished(tiny_folder: Path, trained: list[Any]) -> None:
    (checkpoint,) = list_checkpoints(tiny_folder / "shortened")
    assert checkpoint.step == 6
    assert checkpoint.state()["config"]["training"]["total_steps"] == 4
    assert run_state(tiny_folder / "shortened") == "finished"


def test_other_ranks_and_stages_train_the_same(tiny_folder: Path, trained: list[Any]) -> None:
    """1 -> 2 -> 4 -> 1 ranks, stages 1 -> 2 -> 3 -> 1. Another order of samples would show at once: losses of steps differ."""
    expected, found = losses(tiny_folder, WHOLE), losses(tiny_folder, CHAIN)
    assert len(expected) == len(found) == 40
    assert found[:32] == pytest.approx(expected[:32], rel=1e-4)
    neighbours = [abs(math.log(one / other)) for one, other in zip(expected[8:32], expected[7:31], strict=True)]
    assert sorted(neighbours)[len(neighbours) // 2] > 1e-2


def test_another_precision_goes_on_close(tiny_folder: Path, trained: list[Any]) -> None:
    expected, found = losses(tiny_folder, WHOLE)[32:], losses(tiny_folder, CHAIN)[32:]
    assert found == pytest.approx(expected, rel=2e-2)
    assert found != pytest.approx(expected, rel=1e-6)


def test_what_changed_is_said(tiny_folder: Path, trained: list[Any]) -> None:
    said = [text.removeprefix("changed since the checkpoint: ") for text in events(tiny_folder, CHAIN) if text.startswith("changed since")]
    changes = [set(text.split("; ")) for text in said]
    assert changes == [
        {"training.total_steps 8 -> 16", "training.zero_stage 1 -> 2", "training.micro_batches 1 -> 2", "ranks 1 -> 2"},
        {"training.total_steps 16 -> 24", "training.zero_stage 2 -> 3", "training.micro_batches 2 -> 1", "ranks 2 -> 4"},
        {"training.total_steps 24 -> 32", "training.zero_stage 3 -> 1", "ranks 4 -> 1"},
        {
            *("training.total_steps 32 -> 40", "training.precision fp32 -> bf16", "computing precision fp32 -> bf16"),
            *("training.gap_positions 256 -> 100", "schedule.final_fraction 0.0 -> 0.5"),
            *("checkpoints.keep_last 5 -> 3", "evaluation.lanes 32 -> 16"),
        },
    ]


# Another valid value of every field that must stay as it was.
OTHER: dict[str, Any] = {
    "batches.lanes": 16,
    "batches.steps": 5,
    "batches.block_tokens": 700,
    "batches.state": "reset",
    "model.cell": "irnn",
    "model.layers": 2,
    "model.embedding": 10,
    "model.hidden": 20,
    "model.recurrent_projection": 8,
    "model.projection": 12,
    "model.dropout": 0.1,
    "model.identity_scale": 0.5,
    "model.forget_bias": 4.0,
    "model.input_weight": "normal",
    "model.input_weight_std": 0.01,
    "model.projection_weight": "glorot_normal",
    "model.recurrent_weight_std": 0.1,
    "model.tie_tables": {"tie_tables": True, "embedding": 16},  # goes by itself with no other width
    "softmax.kind": "full",
    "softmax.samples": 50,
    "softmax.proposal": "unigram",
    "softmax.unigram_power": 0.5,
    "softmax.cutoffs": [10, 20],
    "softmax.cluster_factor": 2.0,
    "tables.learning_rate": 0.1,
    "tables.initial_accumulator": 0.1,
    "tables.gradient_scale": 2.0,
    "tables.initial_scale": 0.5,
    "optimizer.kind": "adam",
    "optimizer.learning_rate": 0.1,
    "optimizer.initial_accumulator": 0.1,
    "optimizer.epsilon": 1e-8,
    "optimizer.beta1": 0.8,
    "optimizer.beta2": 0.99,
    "optimizer.momentum": 0.5,
    "optimizer.clip_norm": 1.0,
    "run.seed": 4,
}


def changed_settings(folder: Path, **sections: Any) -> Config:
    training = {"total_steps": 40, "gap_every": None}
    settings = tiny_settings(folder, WHOLE, training=training)
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return parse_config(settings)


def refusal(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        Run(config, single_process())
    return str(caught.value)


@pytest.mark.parametrize("field", OTHER)
def test_a_change_that_may_not_be_is_refused_by_name(tiny_folder: Path, trained: list[Any], field: str) -> None:
    section, key = field.split(".")
    changed = OTHER[field] if isinstance(OTHER[field], dict) else {key: OTHER[field]}
    message = refusal(changed_settings(tiny_folder, **{section: changed}))
    assert f"it differs in {', '.join(f'{section}.{name}' for name in sorted(changed))};" in message
    assert "\n" not in message


def test_every_field_that_must_stay_is_tried() -> None:
    sections = {name: Config.model_fields[name].annotation for name in FIXED_SECTIONS}
    assert all(isinstance(section, type) and issubclass(section, Section) for section in sections.values())
    fields = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}  # type: ignore[union-attr]
    assert set(OTHER) == {*fields, "run.seed"}


def test_another_corpus_and_another_vocabulary_are_refused_by_name(tiny_folder: Path, trained: list[Any], tmp_path: Path) -> None:
    shutil.copytree(tiny_folder / "corpus", tmp_path / "corpus")
    held_out = tmp_path / "corpus" / "heldout-monolingual.tokenized.shuffled" / "news.en.heldout-00001-of-00002"
    held_out.write_text(held_out.read_text() + "w1 w2 w3\n")
    corpus = {"path": str(tmp_path / "corpus")}
    another_corpus = changed_settings(tiny_folder, corpus=corpus, tokens={"directory": str(tmp_path / "tokens")})
    preprocess(another_corpus, progress=False)
    assert "it differs in the corpus;" in refusal(another_corpus)
    tokens = {"directory": str(tmp_path / "fewer")}
    another_vocabulary = changed_settings(tiny_folder, vocabulary={"minimum_count": 5}, tokens=tokens)
    preprocess(another_vocabulary, progress=False)
    assert "it differs in the vocabulary;" in refusal(another_vocabulary)
    write_corpus(tmp_path / "all", seed=6)
    everything = changed_settings(
        tiny_folder, corpus={"path": str(tmp_path / "all")}, tokens={"directory": str(tmp_path / "all_tokens")}, run={"seed": 9}
    )
    preprocess(everything, progress=False)
    assert "it differs in run.seed, the vocabulary, the corpus;" in refusal(everything)
