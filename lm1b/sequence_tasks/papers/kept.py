"""Kept results: what `results.json` of a run says, short enough to live in the repository, one file a task and cell.

1. `shorten` rounds floats to four digits, thins curves to 50 points, keeps of the search where each rate stood, and puts the config's
   neutral values where paths of this machine were.
2. `write_kept` writes one such result, each curve on one line.
3. `read_kept` reads a folder of them. A file without `runs` (the language models', the dynamics') is none of these and left alone.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lm1b.errors import UserError
from lm1b.files import atomic_file, read_json
from lm1b.neutral_path import neutral_path
from lm1b.sequence_tasks.papers.kept_result import CELL_NAMES, KEPT, Curve, Kept, KeptResult, Run

DIGITS, CURVE_POINTS = 4, 50
LARGEST_KEPT_BYTES = 40_000
RUN_KEYS = [key for key in Run.__annotations__ if key != "curve"]


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """The same, every float to so many significant digits."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list) else value


def write_compact_json(path: Path, value: Any) -> None:
    """Indented JSON with every list of numbers on one line, written whole."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r'\[[^\[\]{}"]*\]', lambda found: " ".join(found[0].split()), text)
    with atomic_file(path) as file:
        file.write((text + "\n").encode())


def _thinned(curve: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """At most CURVE_POINTS of a curve's points, evenly, the first and the last always; in columns."""
    places = sorted({round(i * (len(curve) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)}) if curve else []
    return {key: [curve[place][key] for place in places] for key in Curve.__annotations__}


def _best_loss(run: dict[str, Any]) -> float | None:
    """Loss on dev at the point that counts, the one with the least error."""
    return next((point["dev_loss"] for point in run["curve"] if point["updates"] == run["best_updates"]), None)


def shorten(result: dict[str, Any], name: str) -> Kept:
    """What is kept of a `results.json`. Raises UserError where it does not say what data it is on."""
    config = json.loads(json.dumps(result["config"]))
    if "task" not in result:
        raise UserError(f"{name}: its results.json does not say what data it is on; the same command again adds that, without training")
    config["run"]["directory"] = f"runs/tasks/{name}"
    if "path" in config["task"]:
        config["task"]["path"] = neutral_path(config["task"]["path"])
    rungs = [
        {
            "updates": rung["updates"],
            "learning_rates": [run["learning_rate"] for run in rung["runs"]],
            "diverged": [run["diverged"] for run in rung["runs"]],
            "dev_loss": [_best_loss(run) for run in rung["runs"]],
            "dev_error": [run["dev_error"] for run in rung["runs"]],
        }
        for rung in result["search"].get("rungs", [])
    ]
    runs = [{key: run[key] for key in RUN_KEYS if key in run} | {"curve": _thinned(run["curve"])} for run in result["runs"]]
    kept = {"name": name, "config": config, "task": result["task"], "provenance": result.get("provenance")}
    return rounded({**kept, "learning_rate": result["learning_rate"], "search": rungs, "runs": runs, "summary": result["summary"]})


def write_kept(path: Path, kept: Kept) -> None:
    """Write what `shorten` gives. Raises UserError where the file has more than LARGEST_KEPT_BYTES."""
    write_compact_json(path, kept)
    if path.stat().st_size > LARGEST_KEPT_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, more than the {LARGEST_KEPT_BYTES:,} of a kept result; keep fewer seeds")


def read_kept(folder: Path) -> list[KeptResult]:
    """Results in order of their names. Raises UserError for no folder, and for a file that is not what `write_kept` writes."""
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; tools/paper_results.py keep makes it")
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        value = read_json(path)
        if isinstance(value, dict) and "runs" in value:
            try:
                result = KeptResult(KEPT.validate_python(value), path)
            except ValidationError as error:
                wrong = ", ".join(dict.fromkeys(str(problem["loc"][0]) for problem in error.errors()))
                raise UserError(f"{path}: not a kept result ({wrong}); make it with tools/paper_results.py keep") from None
            if result.cell not in CELL_NAMES:
                raise UserError(f"{path}: the cell {result.cell}, expected one of {', '.join(CELL_NAMES)}")
            found.append(result)
    return found
