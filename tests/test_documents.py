"""The READMEs hang together: links and anchors lead somewhere, files that a README is about are named in it, examples of configs load."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from documents import blocks, documents, headings, links, section
from tiny import REPOSITORY

from lm1b.config import load_config

DOCUMENTS = documents()


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    astray: list[str] = []
    for link in links(DOCUMENTS[path]):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        known = there.exists() and there.is_relative_to(REPOSITORY)
        if not known or (anchor and anchor not in {heading.anchor for heading in headings(there.read_text())}):
            astray.append(link)
    assert not astray


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_link_was_overlooked(path: Path) -> None:
    """Links are written in one way: [text](target), the target without spaces or parentheses."""
    written = re.sub(r"^```\w*\n.*?^```$", "", DOCUMENTS[path], flags=re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"\]\(", re.sub(r"`[^`\n]*`", "", written))) == len(list(links(DOCUMENTS[path])))
    assert not re.search(r"^\[[^\]]+\]: |<a |<img ", written, re.MULTILINE)


@pytest.mark.parametrize(("folder", "pattern"), [("results", "*.*"), ("configs", "*.json"), ("launch", "*.py")], ids=str)
def test_a_readme_names_the_files_it_is_about(folder: str, pattern: str) -> None:
    readme = DOCUMENTS[REPOSITORY / folder / "README.md"]
    files = [path.name for path in (REPOSITORY / folder).glob(pattern) if path.name != "README.md"]
    assert files
    assert not [file for file in files if file not in readme and f"`{file.removesuffix('.json')}`" not in readme]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name)
def test_files_that_are_spoken_of_are_there(path: Path) -> None:
    """Code spans such as `tools/benchmark.py`, from the root. The changelog may speak of what was."""
    spans = re.findall(r"`((?:lm1b|launch|tools|tests|configs|results)/[\w./-]*\w)\b", DOCUMENTS[path])
    made = {"results/benchmark_cuda.json", "results/benchmark_cuda.md"}  # by `make gpu`
    assert not [span for span in spans if span not in made and not (REPOSITORY / span).exists()]


def test_the_main_readme_is_short() -> None:
    assert DOCUMENTS[REPOSITORY / "README.md"].count("\n") <= 230


def test_examples_of_configs_load(tmp_path: Path) -> None:
    (example,) = blocks(section("To write one"), "json")
    (tmp_path / "mine.json").write_text(example)
    assert load_config(tmp_path / "mine.json").run.directory == json.loads(example)["run"]["directory"]


def test_headings_and_links_are_told_from_code() -> None:
    text = "# One `two`, three!\n```sh\n# no heading [no](link)\n```\n## One two three\nA [link](x.md#y), `[none](z)`.\n### A_b - c\n"
    assert [(heading.level, heading.anchor) for heading in headings(text)] == [(1, "one-two-three"), (2, "one-two-three-1"), (3, "a_b---c")]
    assert list(links(text)) == ["x.md#y"]
