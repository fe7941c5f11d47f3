"""Rows fetched ahead of a step and gradients sent behind it: the same numbers as in order; formats; who is waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import assert_same_end, job, launch, losses, run_launches

from lm1b.files import read_json_lines
from lm1b.model.row_formats import Packed, Plain, StochasticInt8
from lm1b.randomness import derive_key
from lm1b.training.log.metrics_line import describe
from lm1b.training.timing import WAITED_FOR, straggler

LATE_SECONDS = 0.05


@pytest.fixture(scope="module")
def trained(tiny_folder: Path) -> list[Any]:
    """Launches of two, three and one ranks, with and without overlap and as on a GPU, with a skipped step and with a slow rank."""

    def make(run: str, **sections: Any) -> dict[str, Any]:
        return job(tiny_folder, run, **sections)

    settings = {"total_steps": 25, "gap_every": 10}
    cases = {
        "fp32": {"training": settings},
        "bf16": {"training": {**settings, "precision": "bf16", "micro_batches": 2}},
        "skip": {"training": settings, "poison": {"place": "loss", "first": 6, "end": 8}},
    }
    both = [("ahead", {"overlap": True}), ("order", {"overlap": False})]
    two = [make(f"{name}_{how}", **case, communication=setting) for name, case in cases.items() for how, setting in both]
    two += [make(f"{name}_gpu", **case, as_on_gpu=True) for name, case in cases.items()]
    on_host = {"tables_on_host": True}
    two += [make(f"{name}_host", **case, communication=on_host, as_on_gpu=True) for name, case in cases.items()]
    two.append(make("fp32_host_order", **cases["fp32"], communication={**on_host, "overlap": False}, as_on_gpu=True))
    two += [make(f"{form}_gradients", training=settings, communication={"row_gradients": form}) for form in ("bf16", "int8")]
    late = {"place": "late", "first": 0, "end": 99, "value": LATE_SECONDS}
    two.append(make("late", training={**settings, "log_every": 5}, poison=late))
    three = [make(f"three_{how}", training=settings, batches={"lanes": 12}, communication=setting) for how, setting in both]
    alone = {
        "tied": {"training": settings, "batches": {"state": "reset"}, "model": {"embedding": 16, "tie_tables": True}},
        "full": {"training": settings, "softmax": {"kind": "full"}},
    }
    one = [make(f"{name}_order", **case) for name, case in alone.items()]
    one += [make(f"{name}_gpu", **case, as_on_gpu=True) for name, case in alone.items()]
    one.append(make("tied_host", **alone["tied"], communication=on_host, as_on_gpu=True))
    one += [
        make(f"alone_{how}", training=settings, communication=setting, as_on_gpu=how == "host")
        for how, setting in (("order", {}), ("host", on_host))
    ]
    return run_launches(tiny_folder, "step_rows", [launch(2, two), launch(3, three), launch(1, one)])


@pytest.mark.parametrize("case", ["fp32", "bf16", "skip", "three"])
def test_overlap_changes_no_bit(tiny_folder: Path, trained: list[Any], case: str) -> None:
    assert losses(tiny_folder, f"{case}_ahead") == losses(tiny_folder, f"{case}_order")
    assert_same_end(tiny_folder, f"{case}_ahead", f"{case}_order", 0)


@pytest.mark.parametrize("case", ["fp32", "bf16", "skip", "tied", "full"])
def test_planning_alone_behind_the_step_changes_no_bit(tiny_folder: Path, trained: list[Any], case: str) -> None:
    """As where a GPU computes: rows in the step's own thread, with the same room for them at every step."""
    assert losses(tiny_folder, f"{case}_gpu") == losses(tiny_folder, f"{case}_order")
    assert_same_end(tiny_folder, f"{case}_gpu", f"{case}_order", 0)


@pytest.mark.parametrize(
    ("case", "like"),
    [
        ("fp32_host", "fp32_order"),
        ("fp32_host_order", "fp32_order"),
        ("bf16_host", "bf16_order"),
        ("skip_host", "skip_order"),
        ("tied_host", "tied_order"),
        ("alone_host", "alone_order"),
    ],
)
def test_tables_in_the_hosts_memory_change_no_bit(tiny_folder: Path, trained: list[Any], case: str, like: str) -> None:
    """As where a GPU computes with copies of rows that the thread has fetched from tables on the host."""
    assert losses(tiny_folder, case) == losses(tiny_folder, like)
    assert_same_end(tiny_folder, case, like, 0)


def test_a_skipped_step_is_skipped_with_rows_on_their_way(trained: list[Any]) -> None:
    for seen in (trained[0][0][4], trained[0][1][4]):
        assert [skip["step"] for skip in seen["skips"]] == [7, 8]
        assert all(skip["unchanged"] and not skip["applied"] for skip in seen["skips"])


@pytest.mark.parametrize(("form", "relative"), [("bf16", 2e-3), ("int8", 1e-2)])
def test_compressed_gradients_train_nearly_the_same(tiny_folder: Path, trained: list[Any], form: str, relative: float) -> None:
    plain, compressed = losses(tiny_folder, "fp32_order"), losses(tiny_folder, f"{form}_gradients")
    assert compressed != plain
    assert compressed == pytest.approx(plain, rel=relative)
    assert_same_end(tiny_folder, "fp32_order", f"{form}_gradients", 0.1)


def test_the_rank_that_the_others_wait_for_is_named(tiny_folder: Path, trained: list[Any]) -> None:
    lines = read_json_lines(tiny_folder / "late" / "metrics.jsonl")[1:]
    for line in lines:
        assert line["slowest"].startswith("rank 1")
        waited = [sum(line["waiting_seconds"][part][rank] for part in WAITED_FOR) for rank in (0, 1)]
        assert waited[0] - waited[1] > LATE_SECONDS * 0.5
        assert f"waiting for {line['slowest']}" in describe(line)
        assert line["waiting_for_slowest"] > 0.2


def test_who_is_waited_for() -> None:
    assert straggler([[0.5, 0.0], [0.1, 0.0], [0.3, 0.2]], 1.0) == (1, pytest.approx(0.4))
    assert straggler([[0.5], [0.45]], 1.0) is None
    assert straggler([[0.5]], 1.0) is None


# Formats ----------------------------------------------------------------------------------------------------------


def packed(form: Plain | StochasticInt8, rows: torch.Tensor, ids: torch.Tensor, cut: int) -> Packed:
    """Rows written in two parts, the second first."""
    place = Packed(torch.full((form.row_bytes(rows.shape[1]) * len(rows),), 77, dtype=torch.uint8), *rows.shape)
    form.write(place, cut, rows[cut:], ids[cut:])
    form.write(place, 0, rows[:cut], ids[:cut])
    return place


@settings(deadline=None, max_examples=60)
@given(num_rows=st.integers(0, 9), width=st.sampled_from([1, 3, 8]), data=st.data(), scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]))
def test_rows_come_out_as_they_went_in(num_rows: int, width: int, data: st.DataObject, scale: float) -> None:
    cut = data.draw(st.integers(0, num_rows))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rows = torch.randn(num_rows, width, generator=generator) * scale
    ids = torch.randperm(1000, generator=generator)[:num_rows]
    assert torch.equal(Plain(torch.float32).read(packed(Plain(torch.float32), rows, ids, cut), 0, num_rows), rows)
    form = StochasticInt8(derive_key(1, "row gradient", 0))
    place = packed(form, rows, ids, cut)
    largest = rows.abs().amax(1, keepdim=True) if num_rows else rows
    assert bool(((form.read(place, 0, num_rows) - rows).abs() <= largest / 127 * 1.001).all())
    assert torch.equal(form.read(place, cut, num_rows), form.read(place, 0, num_rows)[cut:])


def test_int8_is_right_on_average_and_keyed_by_row() -> None:
    row = torch.linspace(-1.0, 1.0, 41).pow(3).expand(4000, 41)
    ids = torch.arange(4000)
    form = StochasticInt8(derive_key(3, "row gradient", 7))
    found = form.read(packed(form, row, ids, 0), 0, 4000)
    # One code is 1/127; the mean of 4,000 roundings strays by at most 1/127 / 2 / sqrt(4000), four times which is never passed.
    assert float((found.mean(0) - row[0]).abs().max()) < 4 * (1 / 127 / 2) / 4000**0.5
    assert len(found.unique(dim=0)) > 10
    other = StochasticInt8(derive_key(3, "row gradient", 8))
    assert not torch.equal(found, other.read(packed(other, row, ids, 0), 0, 4000))
    assert torch.equal(found[5:9], form.read(packed(form, row[5:9], ids[5:9], 0), 0, 4))


# What is left of a step ------------------------------------------------------------------------------------------


def test_rows_of_a_step_are_freed_when_it_is_over(trained: list[Any]) -> None:
    """A hook on a leaf that holds the leaf would keep every step's rows and gradients for ever."""
    for launched in trained:
        for seen in launched:
            for one in seen:
                assert 0 < one["rows_alive"] <= 2  # the present step's and the one's before
