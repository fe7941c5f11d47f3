"""The documents of the repository, as the tests read them: every .md file, its headings, sections, code blocks and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tiny import REPOSITORY

FOLDERS = ("configs", "launch", "lm1b", "results", "tests", "tools")  # and the root; elsewhere lie runs, reports and models
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Heading(NamedTuple):
    """One heading. start, end: of its line in the text. anchor: what a link to it says behind the #."""

    level: int
    title: str
    start: int
    end: int
    anchor: str


def documents() -> dict[Path, str]:
    """Every document and its text: not asked of git, since the tests also run in copies without it."""
    paths = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.md")]
    return {path: path.read_text() for path in sorted([*REPOSITORY.glob("*.md"), *paths])}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in this language, in their order."""
    return [code for found, code in FENCE.findall(text) if found == language]


def commands_of(text: str) -> list[str]:
    """Every line of the shell blocks, without comments."""
    lines = [line.split("#")[0].strip() for block in blocks(text, "sh") for line in block.splitlines()]
    return [line for line in lines if line]


def without_code(text: str) -> str:
    """The same length, code blocks and code spans blank."""
    text = FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return re.sub(r"`[^`\n]*`", lambda found: " " * len(found[0]), text)


def headings(text: str) -> list[Heading]:
    """In their order, with the anchors that GitHub gives them: letters, digits, - and _ of the title; a second one of a name gets -1."""
    found: list[Heading] = []
    for match in re.finditer(r"^(#+) (.+)$", FENCE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", match[2].strip().lower()).replace(" ", "-")
        before = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other.anchor) is not None for other in found)
        found.append(Heading(len(match[1]), match[2].strip(), match.start(), match.end(), f"{anchor}-{before}" if before else anchor))
    return found


def section(title: str) -> str:
    """The text under the one heading of this title, whichever document has it, with the headings below it."""
    found: list[str] = []
    for text in documents().values():
        all_headings = headings(text)
        for number, heading in enumerate(all_headings):
            if heading.title == title:
                ends = [later.start for later in all_headings[number + 1 :] if later.level <= heading.level]
                found.append(text[heading.end : ends[0] if ends else len(text)])
    (only,) = found
    return only


def links(text: str) -> Iterator[str]:
    """The targets of all links and images, code left out."""
    for match in re.finditer(r"\]\(([^()\s]+)\)", without_code(text)):
        yield match[1]
