"""Vocabulary tables: sparse Adagrad against a dense table, on one process and on two real ones."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from table_steps import ALONE, apply, asked, fetched
from torch import Tensor

from lm1b.distributed import Ranks
from lm1b.model.row_formats import Plain
from lm1b.model.row_requests import distinct_inputs, distinct_outputs
from lm1b.model.sampler import LogUniform, Sampler
from lm1b.model.tables import VocabularyTable


def make_table(ranks: Ranks = ALONE, num_rows: int = 41, width: int = 6, name: str = "input_table") -> VocabularyTable:
    return VocabularyTable(name, num_rows, width, seed=5, initial_scale=1.0, initial_accumulator=0.5, ranks=ranks)


class DenseTable:
    """The reference: a whole float64 table with torch's own Adagrad on a dense gradient."""

    def __init__(self, table: VocabularyTable) -> None:
        self.rows = torch.nn.Parameter(table.rows.double())
        self.optimizer = torch.optim.Adagrad([self.rows], lr=0.2, initial_accumulator_value=0.5, eps=1e-10)

    def apply(self, gradients: list[tuple[Tensor, Tensor]]) -> None:
        """gradients: (ids, gradient of their rows), in any number, repeated ids and all."""
        self.rows.grad = torch.zeros_like(self.rows)
        for ids, gradient in gradients:
            self.rows.grad.index_add_(0, ids, gradient.double())
        self.optimizer.step()


def random_ids_and_gradient(seed: int, num_rows: int = 41, width: int = 6) -> tuple[Tensor, Tensor]:
    """Distinct ids in no order (from none to nearly all) and gradients: what rank `seed % 2` brings to step `seed // 2`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(num_rows, generator=generator)[: [7, 0, 40, 13][seed % 4]]
    return ids, torch.randn(len(ids), width, generator=generator)


def test_one_process_against_a_dense_table() -> None:
    table = make_table()
    dense = DenseTable(table)
    for seed in range(8):
        ids, gradient = random_ids_and_gradient(seed)
        request = asked(ids)
        assert torch.allclose(fetched(table, request, torch.float32).double(), dense.rows[ids], atol=1e-6)
        apply(table, request, gradient / 3, learning_rate=0.2, gradient_scale=3.0)
        dense.apply([(ids, gradient)])
    assert torch.allclose(table.rows.double(), dense.rows, atol=1e-6)
    assert torch.allclose(table.accumulators.double(), dense.optimizer.state[dense.rows]["sum"], atol=1e-5)


def test_rows_not_asked_for_stay_as_they_are() -> None:
    table = make_table()
    before = table.rows.clone()
    ids = torch.tensor([40, 3, 8])
    apply(table, asked(ids), torch.ones(3, 6), learning_rate=0.1)
    changed = (table.rows != before).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 8, 40]
    assert (table.accumulators != 0.5).any(1).nonzero().flatten().tolist() == [3, 8, 40]


def test_blocks_do_not_change_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, gradient = random_ids_and_gradient(2)
    tables = []
    for elements in (1, 20, 1 << 16):
        monkeypatch.setattr("lm1b.model.tables._BLOCK_ELEMENTS", elements)
        table = make_table()
        request = asked(ids)
        assert torch.equal(fetched(table, request, torch.float32), table.rows[ids])
        apply(table, request, gradient.clone(), learning_rate=0.1)
        tables.append(table)
    for table in tables[1:]:
        assert torch.equal(table.rows, tables[0].rows)
        assert torch.equal(table.accumulators, tables[0].accumulators)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_initial_rows_do_not_depend_on_the_cut(size: int) -> None:
    whole = make_table()
    seen = 0
    for rank in range(size):
        part = make_table(Ranks(rank, size, torch.device("cpu")))
        ids = part.local_ids()
        assert part.rows.shape == (len(ids), 6)
        assert torch.equal(part.rows, whole.rows[ids])
        assert torch.equal(ids % size, torch.full_like(ids, rank))
        seen += len(ids)
    assert seen == 41


def test_initial_rows_are_uniform_keyed_by_name_and_bounded() -> None:
    table = make_table(num_rows=2000, width=30)
    limit = (3 / 30) ** 0.5
    assert table.rows.abs().max() <= limit
    assert table.rows.std().item() == pytest.approx(30**-0.5, rel=0.02)
    assert abs(table.rows.mean()) < 3e-3
    assert not torch.equal(table.rows, make_table(num_rows=2000, width=30, name="output_table").rows)
    bias = VocabularyTable("output_bias", 9, 1, seed=5, initial_scale=0.0, initial_accumulator=1.0, ranks=ALONE)
    assert bias.rows.shape == (9, 1)
    assert not bias.rows.any()
    assert bool((bias.accumulators == 1).all())


def test_rows_are_rounded_alone_too() -> None:
    table = make_table()
    ids = torch.tensor([1, 30])
    rows = fetched(table, asked(ids), torch.bfloat16)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, table.rows[ids].bfloat16().float())


@settings(deadline=None, max_examples=40)
@given(
    targets=st.lists(st.integers(0, 99), min_size=1, max_size=60), step=st.integers(0, 100), num_samples=st.sampled_from([1, 20, 50, 100])
)
def test_positions_of_inputs_and_targets(targets: list[int], step: int, num_samples: int) -> None:
    sampler = Sampler(LogUniform(100), num_samples, seed=1)
    samples = sampler.draw(step)
    targets_N = torch.tensor(targets)
    ids_U, positions = distinct_outputs(samples, targets_N, ALONE)
    assert torch.equal(ids_U[positions], targets_N)
    assert torch.equal(ids_U[:num_samples], samples.ids_S)
    assert len(ids_U.unique()) == len(ids_U)
    assert torch.equal(positions < num_samples, torch.isin(targets_N, samples.ids_S))
    assert set(ids_U.tolist()) == set(samples.ids_S.tolist()) | set(targets)

    inputs_TB = targets_N.unsqueeze(0)
    ids_U, positions = distinct_inputs(inputs_TB, ALONE)
    assert positions.shape == inputs_TB.shape
    assert torch.equal(ids_U[positions], inputs_TB)
    assert len(ids_U) == len(set(targets))


def _two_ranks_sharing_samples(rank: int, store: str, folder: str) -> None:
    """One of two processes: a step's samples, which both ask for, beside targets of its own; its part of the table is saved."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    ranks = Ranks(rank, 2, torch.device("cpu"))
    table, whole = make_table(ranks), make_table()
    samples = Sampler(LogUniform(41), 15, seed=3).draw(0)
    targets_N = torch.randint(0, 41, (9,), generator=torch.Generator().manual_seed(rank))
    ids_U, positions = distinct_outputs(samples, targets_N, ranks)
    request = asked(ids_U, ranks, num_shared=15)
    assert set(request.ids_U[:15].tolist()) == set(samples.ids_S.tolist())
    assert torch.equal(request.ids_U[positions], targets_N)
    assert torch.equal(positions < 15, torch.isin(targets_N, samples.ids_S))
    rows = fetched(table, request, torch.float32)
    assert torch.equal(rows, whole.rows[request.ids_U])
    apply(table, request, rows * (rank + 1), learning_rate=0.2, gradient_scale=3.0)
    save_file({"ids": request.ids_U, "rows": table.rows, "local_ids": table.local_ids()}, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_samples_shared_by_two_processes_against_a_dense_table(tmp_path: Path) -> None:
    multiprocessing.spawn(_two_ranks_sharing_samples, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    dense, whole = DenseTable(make_table()), make_table()
    results = [load_file(tmp_path / str(rank)) for rank in range(2)]
    dense.apply([(result["ids"], whole.rows[result["ids"]] * (rank + 1) * 3.0) for rank, result in enumerate(results)])
    for result in results:
        assert torch.allclose(result["rows"].double(), dense.rows[result["local_ids"]], atol=2e-6)


def _two_ranks_against_dense(rank: int, store: str, folder: str) -> None:
    """One of two processes: eight steps with other ids on each rank, then its part of the table is saved."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    ranks = Ranks(rank, 2, torch.device("cpu"))
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        table, bias = make_table(ranks), make_table(ranks, width=1, name="output_bias")
        whole = make_table()
        for step in range(8):
            ids, gradient = random_ids_and_gradient(2 * step + rank)
            order = torch.argsort(ids % 2 * 100 + ids)
            ids, gradient = ids[order], gradient[order]
            request = asked(ids, ranks)
            rows = fetched(table, request, dtype)
            assert rows.shape == (len(ids), 6)
            assert rows.dtype == torch.float32
            if step == 0:
                assert torch.equal(rows, whole.rows[ids].to(dtype).float())
            fetched(bias, request, torch.float32)
            apply(table, request, gradient, Plain(dtype), learning_rate=0.2)
            apply(bias, request, gradient[:, :1].contiguous(), learning_rate=0.2)
        results[str(dtype)] = [table.local_ids(), table.rows, table.accumulators, bias.rows]
    dist.barrier()
    names = ("ids", "rows", "accumulators", "bias")
    save_file(
        {f"{dtype} {name}": value for dtype, values in results.items() for name, value in zip(names, values, strict=True)},
        f"{folder}/{rank}",
    )
    dist.destroy_process_group()


def test_two_processes_against_a_dense_table(tmp_path: Path) -> None:
    multiprocessing.spawn(_two_ranks_against_dense, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    dense, dense_bias = DenseTable(make_table()), DenseTable(make_table(width=1, name="output_bias"))
    for step in range(8):
        both = [random_ids_and_gradient(2 * step + rank) for rank in range(2)]
        dense.apply(both)
        dense_bias.apply([(ids, gradient[:, :1]) for ids, gradient in both])
    for rank in range(2):
        results = load_file(tmp_path / str(rank))
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 0.02)):
            ids, rows, accumulators, bias = (results[f"{dtype} {name}"] for name in ("ids", "rows", "accumulators", "bias"))
            assert torch.allclose(rows.double(), dense.rows[ids], atol=tolerance)
            assert torch.allclose(accumulators.double(), dense.optimizer.state[dense.rows]["sum"][ids], rtol=10 * tolerance)
            assert torch.allclose(bias.double(), dense_bias.rows[ids], atol=2e-6)
