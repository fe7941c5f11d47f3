"""Keep what runs of launch/sequence_task.py have found: a small JSON file a run, fit for the repository.

    python tools/paper_results.py keep runs/tasks/adding_irnn runs/tasks/adding_lstm --into results/papers

Curves are thinned, floats rounded, paths of this machine left out. A file is named after its run's folder. Instead of a folder, the JSON
file of `tools/paper_results.py language-models` is taken too.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from lm1b.errors import UserError
from lm1b.files import read_json
from lm1b.sequence_tasks.papers.kept import rounded, shorten, write_compact_json, write_kept


def _as_json(value: Any) -> Any:
    """The same with null for a number that is not finite, which JSON has none for: the perplexity of what has diverged."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def neutral_language_models(value: Any) -> dict[str, Any]:
    """The same without paths of this machine in its settings, all of it JSON. Raises UserError for a file of another kind."""
    if not isinstance(value, dict) or "cells" not in value:
        raise UserError("not what `tools/paper_results.py language-models` writes (`cells` is missing)")
    for cell in value["cells"].values():
        for run in cell.get("runs", {}).values():
            run["settings"] = [setting for setting in run["settings"] if not setting.startswith("run.directory=")]
    return _as_json(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, which hold results.json")
    parser.add_argument("--into", type=Path, default=Path("results/papers"), help="folder of the kept files")
    parser.add_argument("--revision", help="git revision that trained, for runs that do not say it themselves")


def run(arguments: argparse.Namespace) -> None:
    """A file for each run."""
    for run in arguments.runs:
        if run.suffix == ".json":
            path = arguments.into / run.name
            write_compact_json(path, rounded(neutral_language_models(read_json(run)), 6))
            print(f"{path}: {path.stat().st_size:,} bytes", flush=True)
            continue
        if not (run / "results.json").exists():
            raise UserError(f"{run}: no results.json: not finished, or no run; launch/sequence_task.py with its config goes on with it")
        name = run.resolve().name
        kept = shorten(read_json(run / "results.json"), name)
        if arguments.revision:
            kept["provenance"] = {"command": None, **(kept["provenance"] or {}), "revision": arguments.revision}
        path = arguments.into / f"{name}.json"
        write_kept(path, kept)
        print(f"{path}: {path.stat().st_size:,} bytes", flush=True)
