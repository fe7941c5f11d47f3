"""A training step does no more work than it did: operators, memory asked for, rows. Counts, which no busy machine changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import REPOSITORY, run_ranks

KEPT = Path(__file__).with_name("step_work.json")
MORE_ALLOWED = 1.05  # other versions of torch count a little otherwise


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("work") / "work.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tools"))  # the benchmark's shapes
        run_ranks([str(Path(__file__).with_name("work_worker.py")), str(out)], 1)
    counts = json.loads(out.read_text())
    asked = counts.pop("asked")
    if os.environ.get("LM1B_WRITE_WORK"):
        KEPT.write_text(json.dumps(counts, indent=2) + "\n")
    return {**counts, "asked": asked}


@pytest.mark.parametrize("case", ["lstm_512 fp32", "lstm_512 bf16", "irnn_512 fp32", "irnn_512 bf16"])
@pytest.mark.parametrize("what", ["operators", "bytes_allocated", "rows_fetched"])
def test_a_step_does_no_more_work_than_it_did(found: dict[str, Any], case: str, what: str) -> None:
    """Where it does less, write the new counts (LM1B_WRITE_WORK=1); where more, say why in the commit."""
    kept = json.loads(KEPT.read_text())[case][what]
    assert 0 < found[case][what] <= MORE_ALLOWED * kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_reads_one_tensor_of_its_own_where_a_gpu_computes(found: dict[str, Any], precision: str) -> None:
    """Each reading has the host wait for the device. Three in all: see training_step.py."""
    asked = found["asked"][precision]
    assert {who: times for who, times in asked.items() if who.startswith("lm1b.")} == {"lm1b._reduce_status tolist": 1}
    # DeepSpeed looks at the gradient's norm; `item` reads the optimizer's own count of steps, which torch keeps on the host.
    assert sum(times for who, times in asked.items() if who.startswith("deepspeed.") and not who.endswith(" item")) == 2
