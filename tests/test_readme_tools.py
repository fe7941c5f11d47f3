"""The commands of the READMEs that are measurements of tools/, run as they stand there, in their order, on tiny shapes."""

from __future__ import annotations

from pathlib import Path

from readme_commands import commands_run_by, run_line


def test_the_readmes_commands(tmp_path: Path) -> None:
    benchmark, scaling, faults = commands_run_by("test_readme_tools")
    small = [f"--set {part}" for part in ("softmax.samples=60", "model.hidden=32", "model.embedding=32", "batches.lanes=4")]
    tiny = "--device cpu --repeats 1 --shapes lstm_512 --vocabulary 2000 --only training logging evaluation"
    run_line(" ".join([benchmark.replace("out.json", f"{tmp_path}/out.json"), tiny, *small]))
    run_line(scaling.replace("out.json", f"{tmp_path}/out.json").replace("scaling.png", f"{tmp_path}/scaling.png"))
    assert (tmp_path / "scaling.png").stat().st_size > 0
    assert "--kills 40" in faults
    run_line(faults.replace("--kills 40", "--kills 1 --phases preprocessing --only kills"))
