"""An entry point of the program with one fault in it, started by the fault rig alone (launches.py).

The environment variable of points.py says which entry point, and what happens where. Worker processes of preprocessing
import this file as well, and get their fault that way.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where it finds `parts`

from lm1b.errors import run_command
from parts.fault_rig.points import install, read_order
from parts.harness.launching import REPOSITORY

ORDER = read_order()
if ORDER is not None:
    install(ORDER, is_worker=__name__ != "__main__")


def main() -> None:
    assert ORDER is not None, "started by the fault rig, not by hand"
    path = REPOSITORY / ORDER.program
    spec = importlib.util.spec_from_file_location("entry_point", path)
    assert spec is not None
    assert spec.loader is not None
    entry_point = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entry_point)
    sys.argv[0] = str(path)
    run_command(entry_point.main)


if __name__ == "__main__":
    main()
