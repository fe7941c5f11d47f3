"""Numbers that are not finite, in one place on one of several real ranks: the step changes nothing anywhere, and is accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from training_runs import events, job, launch, losses, run_launches, tensors_of

from lm1b.files import read_json_lines
from lm1b.training.checkpoints.checkpoint import list_checkpoints
from lm1b.training.log.metrics_line import describe

STEPS, POISONED = 12, 4  # the fifth step is poisoned, in the middle of the warm-up
WARMUP = 8
WEIGHT_HH = "stack.layers.0.weight_hh_l0"
PROJECTION = "projection.weight"


class Case(NamedTuple):
    """One run. place: see training_worker.py; named: how the cause names it."""

    ranks: int
    stage: int
    precision: str
    micro_batches: int
    place: str
    named: str
    value: str = "nan"

    @property
    def run(self) -> str:
        return f"not_finite_{self.ranks}_{self.stage}_{self.precision}_{self.micro_batches}_{self.place}_{self.value}"


CASES = [
    Case(1, 1, "fp32", 1, WEIGHT_HH, f"gradient of {WEIGHT_HH}"),
    Case(1, 2, "bf16", 2, "state", "recurrent state"),
    Case(1, 3, "bf16", 2, PROJECTION, f"gradient of {PROJECTION}", "inf"),
    Case(1, 1, "bf16", 2, "summed", ""),
    Case(2, 1, "fp32", 1, "loss", "loss"),
    Case(2, 1, "fp32", 2, WEIGHT_HH, f"gradient of {WEIGHT_HH}"),
    Case(2, 1, "bf16", 2, "input_table", "gradient of input_table"),
    Case(2, 1, "bf16", 1, PROJECTION, f"gradient of {PROJECTION}", "1e30"),
    Case(2, 2, "fp32", 2, "state", "recurrent state"),
    Case(2, 2, "bf16", 1, "output_table", "gradient of output_table", "inf"),
    Case(2, 2, "bf16", 2, WEIGHT_HH, f"gradient of {WEIGHT_HH}", "-inf"),
    Case(2, 3, "fp32", 2, WEIGHT_HH, f"gradient of {WEIGHT_HH}"),
    Case(2, 3, "fp32", 1, "output_bias", "gradient of output_bias", "1e30"),
    Case(2, 3, "fp32", 1, "summed", ""),
    Case(2, 3, "bf16", 2, PROJECTION, f"gradient of {PROJECTION}"),
]
TOO_MANY = "not_finite_too_many"


@pytest.fixture(scope="module")
def seen(tiny_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What every rank saw, by run."""
    schedule = {"warmup_updates": WARMUP}

    def make(case: Case) -> dict[str, Any]:
        training = {"total_steps": STEPS, "precision": case.precision, "zero_stage": case.stage, "micro_batches": case.micro_batches}
        training |= {"ema_decay": 0.9, "gap_every": None}
        poison = {"place": case.place, "first": POISONED, "end": POISONED + 1, "value": case.value}
        return job(tiny_folder, case.run, training=training, schedule=schedule, poison=poison)

    # Checkpoints after 3 and 6 steps, poison in every step from the eighth on.
    limits = {"training": {"total_steps": STEPS, "max_skipped": 3, "gap_every": None}, "checkpoints": {"every": 3}}
    poison = {"place": WEIGHT_HH, "first": 7, "end": 1000}
    too_many = [job(tiny_folder, TOO_MANY, **limits, poison=poison), job(tiny_folder, TOO_MANY, **limits)]
    jobs = {ranks: [make(case) for case in CASES if case.ranks == ranks] for ranks in (1, 2)}
    jobs[2] += too_many
    found: dict[str, list[dict[str, Any]]] = {}
    for ranks_of_launch in run_launches(tiny_folder, "not_finite", [launch(ranks, jobs[ranks]) for ranks in jobs]):
        planned = jobs[len(ranks_of_launch)]
        for number, one in enumerate(planned):
            name = Path(one["config"]["run"]["directory"]).name
            found[name if name not in found else f"{name} again"] = [reports[number] for reports in ranks_of_launch]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.run.removeprefix("not_finite_"))
class TestOneStep:
    def test_changes_nothing_on_any_rank(self, seen: dict[str, list[dict[str, Any]]], case: Case) -> None:
        for report in seen[case.run]:
            (skip,) = report["skips"]
            assert not skip["applied"]
            assert skip["unchanged"]
            assert report["skipped"] == 1
            assert (report["step"], report["updates"]) == (STEPS, STEPS - 1)

    def test_is_blamed_on_the_rank_and_the_tensor(self, tiny_folder: Path, seen: dict[str, list[dict[str, Any]]], case: Case) -> None:
        last = case.ranks - 1
        causes = [report["skips"][0]["causes"] for report in seen[case.run]]
        assert all(named == causes[0] for named in causes)
        assert all(cause.startswith(f"rank {last}: ") for cause in causes[0]) or not case.named
        if not case.named:
            assert causes[0] == ["all ranks: the core's gradient once summed"]
        elif case.place in ("state", "loss"):
            assert f"rank {last}: {case.named}" in causes[0]  # and all that came of it
        else:
            assert causes[0] == [f"rank {last}: {case.named}"]
        (said,) = [text for text in events(tiny_folder, case.run) if "skipped" in text]
        assert said.startswith(f"step {POISONED + 1}: update skipped, not finite: {causes[0][0]}")

    def test_leaves_the_schedule_where_it_was(self, seen: dict[str, list[dict[str, Any]]], case: Case) -> None:
        updates_before = [*range(POISONED + 1), *range(POISONED, STEPS - 1)]
        for report in seen[case.run]:
            assert report["factors"] == [min(1.0, (updates + 1) / WARMUP) for updates in updates_before]

    def test_restarts_only_the_lanes_whose_state_was_lost(self, seen: dict[str, list[dict[str, Any]]], case: Case) -> None:
        for report in seen[case.run]:
            assert report["skips"][0]["carry_finite"]
            assert report["lanes_restarted"] == report["skips"][0]["lanes"] == (1 if case.place == "state" else 0)

    def test_an_activation_that_is_not_finite_has_no_figure(
        self, tiny_folder: Path, seen: dict[str, list[dict[str, Any]]], case: Case
    ) -> None:
        lines = read_json_lines(tiny_folder / case.run / "metrics.jsonl")
        assert [line["step"] - 1 for line in lines if line["largest_activation"] is None] == ([POISONED] if case.place == "state" else [])
        assert ("largest activation not finite" in describe(lines[POISONED])) == (case.place == "state")

    def test_the_run_goes_on_learning(self, tiny_folder: Path, seen: dict[str, list[dict[str, Any]]], case: Case) -> None:
        found = losses(tiny_folder, case.run)
        assert found[POISONED] is None
        assert found[-1] < found[0]
        end = tensors_of(list_checkpoints(tiny_folder / case.run)[-1])
        assert all(bool(torch.isfinite(tensor).all()) for tensor in end.values())


def test_too_many_in_a_row_end_the_run_on_every_rank_with_step_rank_and_tensor(seen: dict[str, list[dict[str, Any]]]) -> None:
    errors = [report["error"] for report in seen[TOO_MANY]]
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"step 10: 3 updates in a row were not finite (rank 1: gradient of {WEIGHT_HH})")
    assert "\n" not in errors[0]


def test_the_next_run_goes_on_from_the_last_good_checkpoint(tiny_folder: Path, seen: dict[str, list[dict[str, Any]]]) -> None:
    for report in seen[f"{TOO_MANY} again"]:
        # Saved after 9 steps, the last two skipped: they stay skipped, as they would had the run not ended.
        assert (report["error"], report["step"], report["skipped"]) == (None, STEPS, 2)
    assert any(text.startswith("going on at step 9 ") for text in events(tiny_folder, TOO_MANY))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(list_checkpoints(tiny_folder / TOO_MANY)[-1]).values())
