"""Paths as anyone may read them: relative to the repository, or without the folders above them."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ELSEWHERE = "PATH"  # stands for the folders above a file outside the repository


def neutral_path(path: str) -> str:
    """A path relative to the repository; of one elsewhere the last name alone, `PATH/mnist`. What is no absolute path stays."""
    if not path.startswith("/"):
        return path
    try:
        return str(Path(path).resolve().relative_to(REPOSITORY))
    except ValueError:
        return f"{ELSEWHERE}/{Path(path).name}"
