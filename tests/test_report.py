"""The report says what the run's files say, beside baselines that are counted once and kept."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import made_checkpoint, made_config, made_evaluation, made_tokens
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from lm1b.config import Config, override_config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.errors import UserError
from lm1b.evaluation.report import report as report_module
from lm1b.evaluation.report.baselines import find_baselines, levels_of
from lm1b.evaluation.report.curves import LOSS, axes_of, draw_panel
from lm1b.evaluation.report.ngram import KneserNeyTrigram
from lm1b.evaluation.report.perplexity_table import COLUMNS, is_comparable, table_rows
from lm1b.evaluation.report.published import PUBLISHED
from lm1b.evaluation.report.records import RunRecord
from lm1b.evaluation.report.report import report
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.evaluation.scoring.texts import text_of_split
from lm1b.files import append_json_line, read_json, read_json_lines

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run with two scored checkpoints and some metrics."""
    made_tokens(tmp_path / "tokens")
    config = made_config(tmp_path)
    for step in (10, 20):
        evaluator = Evaluator(Path(config.run.directory), config)
        evaluator.score(made_checkpoint(config, step, scale=2.0 / step))
    for step in range(1, 21):
        line = {"step": step, "nats_per_word": 6.0 - step / 20, "words": step * 20}
        append_json_line(Path(config.run.directory) / "metrics.jsonl", line | ({"true_nats_checked": 5.5} if step % 10 == 0 else {}))
    return config


def test_the_legends_of_loss_and_perplexity_do_not_overlap(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def remembering(figure: Figure, *arguments: Any, **keywords: Any) -> None:
        save(figure, *arguments, **keywords)
        if keywords["format"] == "png":
            drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", remembering)
    report([Path(config.run.directory)], tmp_path / "out")
    loss, perplexity = (legend.get_window_extent() for figure in drawn for legend in figure.findobj(Legend))
    assert not loss.overlaps(perplexity)


def test_table_report_and_curves(config: Config, tmp_path: Path) -> None:
    directory = Path(config.run.directory)
    table = report([directory], directory / "report")
    lines = read_json_lines(directory / "evaluations.jsonl")
    for line in lines:
        assert f"{line['word_perplexity']:.2f}" in table
        assert f"{line['step'] * 20:,}" in table
    best = min(lines, key=lambda line: line["word_perplexity"])
    (starred,) = [row for row in table.splitlines() if "*" in row]
    assert f"{best['word_perplexity']:.2f} *" in starred
    text = (directory / "report" / "report.md").read_text()
    assert "do not compare with run" in text
    for figure in PUBLISHED:
        assert f"| {figure.model} | {figure.perplexity} |" in text
    assert "never predicts a sentence's first word" in text
    assert (directory / "report" / "curves.png").read_bytes().startswith(PNG)
    report([directory], tmp_path / "elsewhere")
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["curves.png", "report.html", "report.md"]


def test_baselines_are_those_of_the_run_s_tokens_and_are_kept(config: Config) -> None:
    directory = Path(config.run.directory)
    tokens = TokenDirectory.open(Path(config.tokens.directory))
    train = tokens.split("train")
    pieces = [train.tokens(i) for i in range(len(train.shards))]
    text = text_of_split(tokens, "validation")
    trigram = KneserNeyTrigram.fit(pieces, tokens.vocabulary.size, tokens.vocabulary.end_id)
    counts = np.bincount(np.concatenate(pieces), minlength=tokens.vocabulary.size) + 1
    run = RunRecord.read(directory)
    cache = directory / "report" / "baselines.json"
    found, notes = find_baselines(run, cache)
    (entry,) = found.values()
    assert notes == []
    assert entry["trigram"] == pytest.approx(math.exp(trigram.nats(text.tokens_N).mean()))
    assert entry["unigram"] == pytest.approx(math.exp(-np.log(counts / counts.sum())[text.tokens_N].mean()))
    assert read_json(cache) == found
    # Once counted, the token directory may go.
    shutil.rmtree(config.tokens.directory)
    assert find_baselines(run, cache) == (found, [])
    cache.unlink()
    assert find_baselines(run, cache)[0] == {}
    assert "cannot be read" in find_baselines(run, cache)[1][0]
    assert "note: run: no baselines" in report([directory], directory / "report")


def test_no_baselines_on_a_text_that_has_changed(config: Config, tmp_path: Path) -> None:
    directory = Path(config.run.directory)
    file = tmp_path / "text"
    file.write_text("w1 w2\nw3\n")
    Evaluator(directory, config, None, [file]).score(made_checkpoint(config, 30))
    file.write_text("w1 w2 w3\n")
    run = RunRecord.read(directory)
    found, notes = find_baselines(run, directory / "report" / "baselines.json")
    assert len(found) == 1
    assert "the text has changed" in notes[0]
    file.unlink()
    file.mkdir()
    assert "Is a directory" in find_baselines(run, directory / "report" / "baselines.json")[1][0]
    file.rmdir()
    file.write_text("w1 w2\nw3\n")
    found, notes = find_baselines(run, directory / "report" / "baselines.json")
    assert (len(found), notes) == (2, [])
    assert {line.text_key for line in run.evaluations} == set(found)


def test_two_runs_share_the_baselines_of_a_text(config: Config, tmp_path: Path) -> None:
    other = override_config(config, [f"run.directory={tmp_path / 'other'}"])
    Evaluator(tmp_path / "other", other).score(made_checkpoint(other, 10))
    table = report([Path(config.run.directory), tmp_path / "other"], tmp_path / "out")
    assert len(re.findall(r"^run +\d", table, re.M)) == 2
    assert len(re.findall(r"^other +\d", table, re.M)) == 1
    assert table.count("trigram, Kneser-Ney") == 1


def test_words_and_pieces_of_one_text_have_trigrams_of_their_own(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many predictions, other figures: a run's own line is not lost beside another vocabulary's."""
    run = RunRecord.read(Path(config.run.directory))
    found = []
    for evaluation, trigram in ((made_evaluation(), 140.8), (made_evaluation(vocabulary="1" * 64, tokens=400, label="open"), 333.0)):
        found += levels_of(replace(run, evaluations=[evaluation]), {evaluation.text_key: {"trigram": trigram}})
    assert found == [
        ("Kneser-Ney trigram, 200 predictions", 140.8),
        ("Kneser-Ney trigram, 200 predictions in 400 pieces (open)", 333.0),
    ]
    drawn: list[Any] = []
    levels = {"run": found[:1], "other": found[1:]}
    monkeypatch.setattr(report_module, "levels_of", lambda run, baselines: levels[run.name])
    monkeypatch.setattr(report_module, "draw_curves", lambda runs, levels, path: drawn.append(levels))
    other = Path(config.run.directory).with_name("other")
    shutil.copytree(config.run.directory, other)
    report([Path(config.run.directory), Path(config.run.directory), other], other)
    assert drawn == [found]


def test_a_run_without_results_and_no_run_at_all(config: Config, tmp_path: Path) -> None:
    directory = Path(config.run.directory)
    (directory / "evaluations.jsonl").unlink()
    (directory / "metrics.jsonl").unlink()
    assert "nothing has been scored yet" in report([directory], directory / "report")
    with pytest.raises(UserError, match="no run here"):
        report([tmp_path / "nothing"], tmp_path)


class Counted(list[dict[str, Any]]):
    """Lines that count how often they are gone through."""

    times = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.times += 1
        return super().__iter__()


def test_a_curve_goes_through_the_lines_of_a_run_a_few_times_and_not_once_a_point(config: Config) -> None:
    lines = Counted({"step": step, "nats_per_word": 5.0, "words": step, "elapsed_seconds": step / 2} for step in range(1, 301))
    run = replace(RunRecord.read(Path(config.run.directory)), metrics=lines)
    for axis in axes_of([run]):
        draw_panel(Figure().subplots(), LOSS, [run], axis, [])
    table_rows(run, {})
    assert 0 < lines.times < 20
    assert run.words_at([0, 150]).tolist() == [0, 150]


def test_only_the_full_benchmark_compares(config: Config) -> None:
    run = RunRecord.read(Path(config.run.directory))
    assert not is_comparable(run)
    right = made_evaluation(trained_on_official=True, official="news.en.heldout-00000-of-00050", vocabulary_size=793_471)
    assert is_comparable(replace(run, evaluations=[right]))
    for name, value in [("trained_on_official", False), ("official", "news.en.heldout-00001-of-00050"), ("vocabulary_size", 82_453)]:
        assert not is_comparable(replace(run, evaluations=[replace(right, **{name: value})]))
    pieces = replace(right, vocabulary_size=32_000, label="closed", unknown=446)
    assert is_comparable(replace(run, evaluations=[pieces]))
    assert not is_comparable(replace(run, evaluations=[replace(pieces, label="open")]))
    assert not is_comparable(replace(run, evaluations=[replace(pieces, unknown=447)]))


def test_open_figures_are_named_in_the_table(config: Config) -> None:
    run = RunRecord.read(Path(config.run.directory))
    for label, expected in (("open", "none (open)"), ("closed", "%")):
        (row, *_) = table_rows(replace(run, evaluations=[replace(run.evaluations[0], label=label)]), {})
        assert expected in row[COLUMNS.index("unknown")]
