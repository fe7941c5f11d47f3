"""Markdown for reports."""

from __future__ import annotations


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table whose cells are plain text."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in row) + " |" for row in rows)])
