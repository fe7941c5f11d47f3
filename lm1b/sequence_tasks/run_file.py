"""A run's file: its tensors in safetensors, how far it has come in the metadata. The same whoever has written it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lm1b.errors import UserError
from lm1b.files import atomic_file


def write_run(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Atomically. progress: as JSON holds it."""
    with atomic_file(path, outlives_power=False) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"progress": json.dumps(progress)}))


def read_run(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on CPU, and progress. Raises UserError for a file that is not whole."""
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            return {name: file.get_tensor(name) for name in file.keys()}, progress  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a run that can be gone on with ({error}); delete it to train that run anew") from None
