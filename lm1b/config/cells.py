"""The recurrent cells that a config may name: the house's own, and those that a user's file adds. No torch in here."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

CELLS = ["irnn", "np_rnn", "relu_rnn", "tanh_rnn", "lstm"]  # `recurrent.add_cell` adds more
CELLS_FILE = "LM1B_CELLS"  # environment variable: the user's Python file that adds cells, run when one of them is asked for


def known_cell(name: str) -> str:
    """The name itself. Raises ValueError where neither this house nor the user's file has a cell of that name."""
    file = os.environ.get(CELLS_FILE)
    if name not in CELLS and file:
        if not Path(file).is_file():
            raise ValueError(f"{CELLS_FILE}={file}: no such file")
        runpy.run_path(file)
    if name not in CELLS:
        raise ValueError(f"no such cell; expected one of {', '.join(CELLS)}, or one that the file named by {CELLS_FILE} adds")
    return name


Cell = Annotated[str, AfterValidator(known_cell), WithJsonSchema({"enum": CELLS, "type": "string"})]
