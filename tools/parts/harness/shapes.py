"""The models whose steps are measured, by name: a shipped config, and what is set on it."""

from __future__ import annotations

from lm1b.config import Config, load_config
from parts.harness.launching import REPOSITORY

NEWS_WORDS = 82_453
_RECIPE = ["batches.lanes=128", "batches.steps=20", "softmax.samples=8192"]
# Name -> config and what is set on it. The last is a slice of BIGLSTM (2 x 8192-1024) for a CPU: a layer, an eighth of the lanes.
SHAPES: dict[str, tuple[str, list[str]]] = {
    "irnn_512": ("irnn_lm", ["model.hidden=512", "model.projection=null"]),
    "irnn_1024_512": ("irnn_lm", []),
    "lstm_512": ("lstm_lm", []),
    "lstm_2048_512": ("lstm_lm", ["model.hidden=2048", "model.recurrent_projection=512"]),
    "biglstm": ("biglstm_lm", []),
    "biglstm_slice": ("lstm_lm", ["model.hidden=8192", "model.recurrent_projection=1024", "model.embedding=1024", "batches.lanes=16"]),
}


def shape_config(name: str, precision: str, overrides: list[str] | None = None) -> Config:
    """A shipped config as the shape `name`, with the benchmark's classic batch."""
    config, settings = SHAPES[name]
    return load_config(
        REPOSITORY / "configs" / f"{config}.json", [*_RECIPE, *settings, f"training.precision={precision}", *(overrides or [])]
    )
