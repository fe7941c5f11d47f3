"""Markdown for reports."""

from __future__ import annotations

import re
from collections.abc import Collection


def markdown_table(header: list[str], rows: list[list[str]], *, left: Collection[int] | None = None) -> str:
    """A table whose cells are plain text. left: numbers of the columns aligned to the left, the others to the right; None: all."""
    marks = ["---" if left is None or number in left else "--:" for number in range(len(header))]
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(marks) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in row) + " |" for row in rows)])


def literal(text: str) -> str:
    """`text` so that Markdown shows it as it is: a run called `<b>*x*</b>` is neither bold nor HTML. On one line."""
    one_line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    escaped = re.sub(r"([\\`*\[\]<>&~#])", r"\\\1", one_line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # one within a word is no emphasis
