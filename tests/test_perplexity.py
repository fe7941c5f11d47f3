"""Exact evaluation against a float64 loop over positions, on every way to cut the text, and at the benchmark's size."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_checkpoint, made_config, made_text, made_tokens, made_vocabulary
from scoring_reference import brute_force_nats, made_scorer

from lm1b.config import Config, ModelConfig, override_config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.distributed import Ranks, single_process
from lm1b.errors import UserError
from lm1b.evaluation.scoring import texts as texts_module
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.evaluation.scoring.perplexity import evaluate_checkpoint
from lm1b.evaluation.scoring.texts import ScoredText, cut_for_scoring, text_of_files, text_of_split
from lm1b.evaluation.trained import scorer as scorer_module
from lm1b.evaluation.trained.open import open_checkpoint
from lm1b.evaluation.trained.scorer import Scorer
from lm1b.model.language_model import LanguageModel
from lm1b.model.output_layer import TableOutput
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.evaluations import Evaluation

ALONE = single_process()
VOCABULARY = made_vocabulary()

SEQUENCES = st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=30), min_size=1, max_size=9)


@settings(deadline=None, max_examples=25)
@given(SEQUENCES, st.integers(1, 40), st.integers(1, 5), st.sampled_from(["lstm", "irnn", "tanh_rnn"]))
def test_sequences_of_any_lengths_equal_brute_force(sequences: list[list[int]], positions: int, side_by_side: int, cell: str) -> None:
    scorer, input_rows = made_scorer(3, 20, cell=cell)
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "POSITIONS", positions)
        arrays = [np.array(sequence, np.uint16) for sequence in sequences]
        nats = scorer.nats(arrays, side_by_side, told.append)
        each = dict(scorer.nats_of_each(arrays, side_by_side))
    output = scorer.output
    assert isinstance(output, TableOutput)
    expected = [brute_force_nats(scorer.model, input_rows, output.rows_LP, output.bias_L, sequence, 1) for sequence in sequences]
    assert nats == pytest.approx(sum(expected), rel=1e-6)
    assert sum(told) == sum(map(len, sequences))
    assert each.keys() == set(range(len(sequences)))
    for number, sequence in enumerate(sequences):
        assert len(each[number]) == len(sequence)
        assert each[number].sum() == pytest.approx(expected[number], rel=1e-6)


def test_300_positions_at_the_benchmark_s_vocabulary_size() -> None:
    size, width, positions, end = 793_471, 16, 300, 2
    config = ModelConfig(cell="lstm", embedding=8, hidden=16)
    model = LanguageModel(config, 5)
    generator = torch.Generator().manual_seed(5)
    output_rows_VP = torch.randn(size, width, generator=generator) * 4
    bias_V = torch.randn(size, generator=generator)
    tokens_N = np.random.default_rng(5).integers(0, size, positions)
    ids_U = np.union1d(tokens_N, [end])
    input_rows_UD = torch.randn(len(ids_U), 8, generator=generator)
    scorer = Scorer(model, ids_U, input_rows_UD, TableOutput(output_rows_VP, bias_V, ALONE), end, ALONE)
    lanes = np.split(tokens_N, [90, 200])
    nats = scorer.nats(lanes, 3)
    # The reference: every logit of every position in float64, from the same inputs.
    expected = 0.0
    reference = LanguageModel(config, 5).double()
    rows, bias = output_rows_VP.double(), bias_V.double()
    with torch.no_grad():
        for lane in lanes:
            inputs = np.searchsorted(ids_U, np.concatenate([[end], lane[:-1]]))
            hidden_T1P, _ = reference.hidden(input_rows_UD[inputs].double().unsqueeze(1), reference.zero_state(1, "cpu"))
            # Four positions at a time: blocks of memory that the allocator keeps, several times faster than all at once.
            for hidden_nP, targets_n in zip(hidden_T1P.squeeze(1).split(4), torch.from_numpy(lane).split(4), strict=True):
                logits_nV = torch.addmm(bias, hidden_nP, rows.T)
                expected += float((torch.logsumexp(logits_nV, 1) - logits_nV[torch.arange(len(targets_n)), targets_n]).sum())
    assert nats == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 12), st.sampled_from(["carry", "reset"]))
def test_cutting_drops_nothing_and_cuts_at_sentence_ends_only(lengths: list[int], lanes: int, state: str) -> None:
    tokens = np.concatenate([[*range(3, 3 + length), 0] for length in lengths])
    text = ScoredText.of(VOCABULARY, "validation", ["x"], tokens, np.cumsum(np.array(lengths) + 1), 0)
    sequences = cut_for_scoring(text, state, lanes)
    np.testing.assert_array_equal(np.concatenate(sequences), tokens)
    assert all(sequence[-1] == 0 for sequence in sequences)
    assert len(sequences) == len(lengths) if state == "reset" else len(sequences) <= lanes
    assert text.words + text.sentences == len(tokens)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=50), st.integers(0, 300), st.integers(1, 60))
def test_the_ids_of_a_text_are_those_that_occur_and_the_end(ids: list[int], end: int, together: int) -> None:
    tokens = np.array(ids, np.uint16)
    text = replace(ScoredText.of(VOCABULARY, "train", ["x"], tokens, np.array([len(ids)]), 0), end_id=end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_module, "LOOKED_AT_TOGETHER", together)
        np.testing.assert_array_equal(text.distinct_ids(), np.union1d(ids, [end]))


def test_finding_a_long_text_s_ids_copies_no_text() -> None:
    tokens = np.tile(np.arange(1000, dtype=np.uint32), 6000)
    text = ScoredText.of(VOCABULARY, "train", ["x"], tokens, np.array([len(tokens)]), 0)
    tracemalloc.start()
    text.distinct_ids()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < tokens.nbytes / 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, TokenDirectory, Checkpoint]:
    folder = tmp_path_factory.mktemp("made")
    tokens = made_tokens(folder / "tokens")
    config = made_config(folder)
    return config, tokens, made_checkpoint(config, 10)


def evaluate(config: Config, checkpoint: Checkpoint, text: ScoredText) -> list[Evaluation]:
    return evaluate_checkpoint(checkpoint, config.evaluation, text)


@pytest.mark.parametrize("state", ["carry", "reset"])
def test_a_checkpoint_scored_is_the_brute_force_figure(made: tuple[Config, TokenDirectory, Checkpoint], state: str) -> None:
    config, tokens, checkpoint = made
    config = override_config(config, [f"evaluation.state={state}", "evaluation.weights=both"])
    text = text_of_split(tokens, "validation")
    lines = evaluate(config, checkpoint, text)
    assert [line.weights for line in lines] == ["ema", "raw"]
    split = tokens.split("validation")
    for line in lines:
        model = LanguageModel(config.model, 0)
        model.load_state_dict(checkpoint.core({"ema": "ema", "raw": "weights"}[line.weights]) or {})
        tables = [checkpoint.read_table(name) for name in ("input_table", "output_table", "output_bias")]
        sequences = [sequence.tolist() for sequence in cut_for_scoring(text, state, 3)]
        nats = sum(brute_force_nats(model, tables[0], tables[1], tables[2].flatten(), s, tokens.vocabulary.end_id) for s in sequences)
        assert line.nats == pytest.approx(nats, rel=1e-6)
        assert line.word_perplexity == pytest.approx(math.exp(nats / (split.num_words + split.num_sentences)), rel=1e-5)
        assert (line.words, line.sentences, line.unknown) == (split.num_words, split.num_sentences, split.num_unknown)
        assert line.predictions == split.num_tokens == split.num_words + split.num_sentences
        assert (line.step, line.split, line.state, line.precision) == (10, "validation", state, "fp32")
        assert line.vocabulary == tokens.fingerprint
        assert line.files == ["validation-2", "validation-3"]
    assert lines[0].nats != lines[1].nats


def test_no_rank_holds_more_than_its_output_rows(made: tuple[Config, TokenDirectory, Checkpoint]) -> None:
    _, tokens, checkpoint = made
    for rank in range(3):
        with open_checkpoint(checkpoint, tokens.fingerprint, Ranks(rank, 3, torch.device("cpu"))) as trained:
            rows = trained.rows(np.array([1, 2]))
        num_rows = len(range(rank, tokens.vocabulary.size, 3))
        assert rows.output_VP is not None
        assert rows.bias_V is not None
        assert len(rows.output_VP) == len(rows.bias_V) == num_rows
        assert rows.output_VP.untyped_storage().nbytes() == 4 * num_rows * rows.output_VP.shape[1]


def test_bfloat16_is_close_and_no_average_falls_back_to_raw(made: tuple[Config, TokenDirectory, Checkpoint]) -> None:
    config, tokens, _ = made
    checkpoint = made_checkpoint(config, 11, ema=False)
    text = text_of_split(tokens, "validation")
    (exact,) = evaluate(config, checkpoint, text)
    (rough,) = evaluate(override_config(config, ["evaluation.precision=bf16"]), checkpoint, text)
    assert (exact.weights, rough.weights, rough.precision) == ("raw", "raw", "bf16")
    told: list[tuple[int, int]] = []
    both = override_config(config, ["evaluation.weights=both"]).evaluation
    evaluate_checkpoint(checkpoint, both, text, on_scored=lambda n, total: told.append((n, total)))
    assert {total for _, total in told} == {sum(n for n, _ in told)}, "scored once, and said so from the start"
    assert rough.nats == pytest.approx(exact.nats, rel=1e-2)
    assert rough.nats != exact.nats


def test_the_checkpoint_knows_its_own_architecture(made: tuple[Config, TokenDirectory, Checkpoint], tmp_path: Path) -> None:
    config, tokens, checkpoint = made
    other = config.model_copy(update={"model": config.model.model_copy(update={"hidden": 99, "cell": "irnn"})})
    (found,) = Evaluator(tmp_path, other).score(checkpoint)
    assert found.nats == pytest.approx(evaluate(config, checkpoint, text_of_split(tokens, "validation"))[0].nats, rel=1e-9)


def test_files_give_what_a_split_of_the_same_text_gives(made: tuple[Config, TokenDirectory, Checkpoint], tmp_path: Path) -> None:
    config, tokens, checkpoint = made
    for name, (seed, sentences) in {"a": (2, 30), "b": (3, 11)}.items():
        (tmp_path / name).write_text(made_text(seed, sentences))
    by_files = text_of_files(tokens.vocabulary, [tmp_path / "a", tmp_path / "b"])
    by_split = text_of_split(tokens, "validation")
    np.testing.assert_array_equal(by_files.tokens_N, by_split.tokens_N)
    np.testing.assert_array_equal(by_files.sentence_ends, by_split.sentence_ends)
    assert by_files.unknown == by_split.unknown > 0
    assert evaluate(config, checkpoint, by_files)[0].nats == evaluate(config, checkpoint, by_split)[0].nats


def test_a_user_s_mistakes_are_told_in_one_line(made: tuple[Config, TokenDirectory, Checkpoint], tmp_path: Path) -> None:
    config, tokens, checkpoint = made
    vocabulary = tokens.vocabulary
    (tmp_path / "latin").write_bytes("caf\u00e9 .\n".encode("latin-1"))
    (tmp_path / "empty").write_bytes(b"\n")
    for name, message in [("none", "no such file"), ("latin", "not UTF-8"), ("empty", "no sentence")]:
        with pytest.raises(UserError, match=message):
            text_of_files(vocabulary, [tmp_path / name])
    with pytest.raises(UserError, match="trained with vocabulary"):
        evaluate(config, checkpoint, replace(text_of_split(tokens, "test"), fingerprint="0" * 64))
    gone = Checkpoint(99, checkpoint.path.with_name("step_00000099"))
    with pytest.raises(UserError, match="deleted"):
        evaluate(config, gone, text_of_split(tokens, "test"))


def test_a_damaged_checkpoint_is_refused_by_name(made: tuple[Config, TokenDirectory, Checkpoint]) -> None:
    config, tokens, _ = made
    checkpoint = made_checkpoint(config, 12)
    file = next(checkpoint.path.glob("output_table.*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"output_table.*damaged"):
        evaluate(config, checkpoint, text_of_split(tokens, "validation"))


def test_official_files_are_known_by_their_content(made: tuple[Config, TokenDirectory, Checkpoint], tmp_path: Path) -> None:
    _, tokens, _ = made
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "lm1b" / "heldout-monolingual.tokenized.shuffled"
    if not shared.is_dir():
        pytest.skip("the benchmark's held-out files are not on this machine")
    (tmp_path / "renamed").write_bytes((shared / "news.en.heldout-00010-of-00050").read_bytes())
    text = text_of_files(tokens.vocabulary, [tmp_path / "renamed"])
    assert text.official == "news.en.heldout-00010-of-00050"
    assert (text.sentences, text.words) == (6_111, 155_717)
    assert not text.is_test


def test_official_counts_that_differ_are_refused(
    made: tuple[Config, TokenDirectory, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokens, _ = made
    (tmp_path / "file").write_text("w1 w2\nnever w3\n")
    monkeypatch.setattr("lm1b.evaluation.scoring.texts.official_name_of", lambda md5: "heldout/news.en.heldout-00000-of-00050")
    monkeypatch.setattr("lm1b.evaluation.scoring.texts.HELD_OUT_COUNTS", {"news.en.heldout-00000-of-00050": (2, 6, 5)})
    text = text_of_files(tokens.vocabulary, [tmp_path / "file"])  # another vocabulary: another number of unknown words is right
    assert (text.official, text.is_test, text.unknown) == ("news.en.heldout-00000-of-00050", True, 1)
    monkeypatch.setattr("lm1b.evaluation.scoring.texts.VOCABULARY_SIZE", tokens.vocabulary.size)
    with pytest.raises(UserError, match="official"):
        text_of_files(tokens.vocabulary, [tmp_path / "file"])
