"""lm1b: recurrent language models on the 1 Billion Word benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm1b.evaluation.trained.loading import LoadedModel

__version__ = "0.1.0"


def load(path: str | Path, **options: Any) -> LoadedModel:
    """A trained model to ask: `lm1b.load("runs/irnn_lm").score(["The president said ."])`.

    path: a run directory or an exported model. options: of `lm1b.evaluation.trained.exported.load_model` (checkpoint, weights, precision,
    device). Raises UserError where there is nothing to load.
    """
    from lm1b.evaluation.trained.exported import load_model  # importing the package alone loads no torch

    return load_model(Path(path), **options)
