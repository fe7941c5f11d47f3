"""Breakdowns of a perplexity, its confidence interval, and the paired test of two runs: from the nats of every token."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_checkpoint, made_config, made_text, made_tokens

from lm1b.errors import UserError
from lm1b.evaluation.report.breakdown import by_frequency, by_position, compare, confidence
from lm1b.evaluation.report.details import kept_nats, render_details
from lm1b.evaluation.report.records import RunRecord
from lm1b.evaluation.report.report import report
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.evaluation.scoring.token_nats import TokenNats, path_of, read_token_nats
from lm1b.strict import override
from lm1b.training.run_folder import RunFolder

END, UNKNOWN = 1, 3


def made_nats(seed: int, sentences: int = 400, words: int = 5_000, easier: float = 0.0) -> TokenNats:
    """Sentences of random words; the same seed, the same text. easier: nats less a token, on the average."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 30, sentences)
    ids = np.concatenate([[*(4 + generator.integers(0, words, length)), END] for length in lengths])
    ids[::17] = np.where(ids[::17] == END, END, UNKNOWN)
    nats = generator.gamma(2.0, 2.5, len(ids))
    noise = np.random.default_rng(seed + 1000).normal(-easier, 0.5, len(ids)) if easier else 0.0
    facts = {"vocabulary": "v", "end_id": END, "unknown_id": UNKNOWN}
    return TokenNats((nats + noise).astype(np.float32), ids.astype(np.uint32), facts)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_parts_make_up_the_whole(seed: int, sentences: int) -> None:
    tokens = made_nats(seed, sentences, words=200_000)
    for parts in (by_frequency(tokens), by_position(tokens)):
        assert sum(part.predictions for part in parts) == len(tokens.ids_N)
        assert math.fsum(part.share_of_nats for part in parts) == pytest.approx(1.0)
        total = math.fsum(part.predictions * math.log(part.perplexity) for part in parts)
        assert total == pytest.approx(tokens.nats_N.astype(np.float64).sum(), rel=1e-9)
    assert tokens.by_sentence(tokens.nats_N).sum() == pytest.approx(tokens.nats_N.astype(np.float64).sum())
    assert len(tokens.by_sentence(tokens.nats_N)) == sentences


def test_bands_by_hand() -> None:
    facts = {"vocabulary": "v", "end_id": END, "unknown_id": UNKNOWN}
    ids = np.array([0, 9, 10, 2_000, UNKNOWN, END, 500_000, END], np.uint32)
    tokens = TokenNats(np.arange(1, 9, dtype=np.float32), ids, facts)
    bands = {part.name: (part.predictions, round(part.share_of_nats * 36), part.perplexity) for part in by_frequency(tokens)}
    assert bands == {
        "words 1 to 10": (2, 3, pytest.approx(math.exp(1.5))),
        "words 11 to 100": (1, 3, pytest.approx(math.exp(3))),
        "words 1,001 to 10,000": (1, 4, pytest.approx(math.exp(4))),
        "words from 100,001": (1, 7, pytest.approx(math.exp(7))),
        "`</S>`": (2, 14, pytest.approx(math.exp(7))),
        "`<UNK>`": (1, 5, pytest.approx(math.exp(5))),
    }
    places = {part.name: part.predictions for part in by_position(tokens)}
    assert places == {"word 1": 2, "word 2": 2, "words 3 to 5": 3, "words 6 to 10": 1}


def test_a_diverged_run_s_nats_are_shown_and_end_nothing() -> None:
    """Mean nats whose exponential no float holds."""
    tokens = replace(made_nats(1), nats_N=np.full_like(made_nats(1).nats_N, 800.0))
    assert confidence(tokens) == (math.inf, math.inf, math.inf)
    assert {part.perplexity for part in [*by_frequency(tokens), *by_position(tokens)]} == {math.inf}
    assert compare(made_nats(1), tokens).low == math.inf
    assert compare(tokens, made_nats(1)).high == 0.0


def test_the_interval_has_the_width_that_theory_gives() -> None:
    tokens = made_nats(1, sentences=2_000)
    found = confidence(tokens)
    nats, counts = tokens.by_sentence(tokens.nats_N), tokens.by_sentence(np.ones(len(tokens.ids_N)))
    mean = nats.sum() / counts.sum()
    spread = np.sqrt(((nats - mean * counts) ** 2).sum()) / counts.sum()  # of a ratio of sums, by linearization
    assert found.value == pytest.approx(math.exp(mean))
    assert math.log(found.high / found.low) == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert confidence(tokens) == found  # seeded


def test_a_paired_test_tells_what_two_intervals_could_not() -> None:
    one, other = made_nats(1), made_nats(1, easier=0.05)
    ratio = compare(one, other)
    assert ratio.value == pytest.approx(confidence(other).value / confidence(one).value)
    assert ratio.low < ratio.value < ratio.high < 1.0
    assert confidence(one).low < confidence(other).high  # apart they overlap
    same = compare(one, made_nats(1, easier=1e-9))
    assert same.low < 1.0 < same.high
    with pytest.raises(ValueError, match="not the same text"):
        compare(one, made_nats(2))


def test_an_evaluation_keeps_the_nats_and_the_report_shows_them(tmp_path: Path) -> None:
    made_tokens(tmp_path / "tokens")
    text = tmp_path / "text.txt"
    text.write_text(made_text(5, 50))
    runs = []
    for number, scale in enumerate((0.5, 2.0)):
        config = made_config(tmp_path)
        config = override(config, [f"run.directory={tmp_path}/run_{number}", "evaluation.weights=both"])
        checkpoints = [made_checkpoint(config, step, scale=scale) for step in (10, 20)]
        runs.append(Path(config.run.directory))
        for checkpoint in checkpoints:
            Evaluator(runs[-1], config, "validation").score(checkpoint)
        Evaluator(runs[-1], override(config, ["evaluation.state=reset"]), None, [text]).score(checkpoints[1])
    folder = RunFolder(runs[0])
    results = folder.read_evaluations()
    assert len(results) == 6
    for result in results:
        found = read_token_nats(path_of(folder, result))
        assert found.are_of(result) == (result.step == 20), "the latest takes the place of the one before"
        if result.step == 20:
            assert found.nats_N.astype(np.float64).sum() == pytest.approx(result.nats, rel=1e-6)
            assert len(found.by_sentence(found.nats_N)) == result.sentences
            assert np.count_nonzero(found.ids_N == found.facts["unknown_id"]) == result.unknown
    report(runs, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "## Where the nats go" in page
    assert page.count("| run_0 | run_1 |") == 4  # ema and raw of either text
    assert "run_0 is better" in page
    path = path_of(folder, results[-1])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"damaged .*; evaluate again"):
        read_token_nats(path)


def test_the_report_shows_the_nats_of_what_was_scored_last_whatever_its_step(tmp_path: Path) -> None:
    """As a watcher leaves them that has caught up, the newest checkpoint first."""
    made_tokens(tmp_path / "tokens")
    config = made_config(tmp_path)
    checkpoints = [made_checkpoint(config, step) for step in (10, 20)]
    evaluator = Evaluator(Path(config.run.directory), config)
    for checkpoint in reversed(checkpoints):
        evaluator.score(checkpoint)
    assert [evaluation.step for evaluation, _ in kept_nats(RunRecord.read(Path(config.run.directory)))] == [10]


@pytest.mark.parametrize("override_of_other", ["evaluation.lanes=2", "evaluation.weights=raw", "evaluation.precision=bf16"])
def test_runs_that_are_not_scored_alike_are_not_compared(tmp_path: Path, override_of_other: str) -> None:
    made_tokens(tmp_path / "tokens")
    alike, otherwise = [], []
    for number, overrides in enumerate(([], [], [override_of_other])):
        config = override(made_config(tmp_path), [f"run.directory={tmp_path}/run_{number}", *overrides])
        Evaluator(Path(config.run.directory), config).score(made_checkpoint(config, 10, scale=0.5 + number))
        (alike if number < 2 else otherwise).append(RunRecord.read(Path(config.run.directory)))
    assert any("### Two runs" in part for part in render_details(alike))
    assert not any("### Two runs" in part for part in render_details([alike[0], *otherwise]))
