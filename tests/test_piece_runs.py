"""Words spelled by pieces in shards, scores, drawn sentences and exports: a figure per word is the same whatever the ids."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from made_run import made_checkpoint, made_config, made_text
from piece_vocabularies import counted, learnt
from tiny import write_corpus

import lm1b
from lm1b.config import Config, TokensConfig, parse_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.remote import open_tokens
from lm1b.data.vocabulary.pieces import PieceVocabulary
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.data.vocabulary.words import WordVocabulary, build_vocabulary
from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.evaluation.report.breakdown import by_position
from lm1b.evaluation.scoring.perplexity import evaluate_checkpoint
from lm1b.evaluation.scoring.texts import text_of_files, text_of_split
from lm1b.evaluation.scoring.token_nats import TokenNats
from lm1b.evaluation.trained.export import export_run
from lm1b.evaluation.trained.loading import LoadedModel
from lm1b.evaluation.trained.sampling import sample_sentence
from lm1b.evaluation.trained.sampling_settings import SamplingSettings
from lm1b.evaluation.trained.scorer import Rows, Scorer
from lm1b.model.language_model import LanguageModel
from lm1b.strict import override
from lm1b.training.checkpoints.checkpoint import Checkpoint


def config_of(folder: Path, **vocabulary: object) -> Config:
    """A made run's config, on the tiny corpus."""
    settings_json = made_config(folder).as_json()
    settings_json["corpus"] = {"kind": "lm1b", "path": str(folder / "corpus")}
    settings_json["vocabulary"] = vocabulary
    return parse_config(settings_json)


PIECES = {"kind": "sentencepiece", "pieces": 285}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    write_corpus(folder / "corpus", sentences=300)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Checkpoint:
    """A checkpoint of random weights over pieces, closed by a word vocabulary."""
    config = config_of(folder, **PIECES, closed=True, minimum_count=4)
    preprocess(config, progress=False)
    return made_checkpoint(config, 10)


def test_shards_hold_the_pieces_of_the_text_and_count_its_words(made: Checkpoint, folder: Path) -> None:
    tokens = TokenDirectory.open(folder / "tokens")
    tokens.verify()
    path = folder / "corpus" / "heldout-monolingual.tokenized.shuffled" / "news.en.heldout-00001-of-00002"
    expected = tokens.vocabulary.encode(path.read_bytes())
    split = tokens.split("validation")
    assert split.joined()[0].tolist() == expected.ids_N.tolist()
    assert (split.num_words, split.num_sentences, split.num_unknown) == expected[1:]
    assert split.num_words == len(path.read_text().split()) < split.num_tokens - split.num_sentences
    assert 0 < split.num_unknown < split.num_words


def test_another_kind_of_vocabulary_takes_the_place_of_the_one_before(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "corpus").symlink_to(folder / "corpus")
    names = {}
    for kind in ({"minimum_count": 4}, {**PIECES, "closed": True, "minimum_count": 4}, PIECES, {"minimum_count": 4}):
        tokens = preprocess(config_of(tmp_path, **kind), progress=False)
        tokens.verify()
        found = sorted(path.name for path in (tmp_path / "tokens").glob("vocabulary*"))
        names[tokens.vocabulary.label, tokens.vocabulary.kind] = found
    assert names == {
        ("closed", "words"): ["vocabulary.txt"],
        ("closed", "sentencepiece"): ["vocabulary.model", "vocabulary.txt", "vocabulary.words.txt"],
        ("open", "sentencepiece"): ["vocabulary.model", "vocabulary.txt"],
    }


def test_scores_are_per_word_and_add_up_to_the_exact_evaluation(made: Checkpoint, folder: Path, tmp_path: Path) -> None:
    tokens = TokenDirectory.open(folder / "tokens")
    path = tmp_path / "text.txt"
    path.write_text(made_text(9, 60))
    text = text_of_files(tokens.vocabulary, [path])
    config = override(config_of(folder), ["evaluation.state=reset"])
    (line,) = evaluate_checkpoint(made, config.evaluation, text)
    lines = path.read_text().splitlines()
    scores = lm1b.load(folder / "run").score(lines)
    assert [score.words for score in scores] == [len(each.split()) for each in lines]
    assert all(len(score.log_probabilities) == score.words + 1 for score in scores)
    assert sum(score.unknown for score in scores) == line.unknown
    assert math.fsum(score.nats for score in scores) == pytest.approx(line.nats, rel=1e-9)
    assert line.word_perplexity == pytest.approx(math.exp(line.nats / (line.words + line.sentences)))
    assert (line.predictions, line.label) == (line.words + line.sentences, "closed")
    assert line.tokens == len(text.tokens_N) > line.predictions


def test_drawn_sentences_are_whole_words(made: Checkpoint, folder: Path) -> None:
    model = lm1b.load(folder / "run")
    for number in range(6):
        words = list(sample_sentence(model, "w1 w2", SamplingSettings(longest=7), number))
        assert len(words) <= 7
        assert all(word and not set(word) & set(" \t\r\n\v\f") for word in words)
        assert "<UNK>" not in words


def test_places_in_the_sentence_are_of_words(folder: Path, made: Checkpoint) -> None:
    tokens = TokenDirectory.open(folder / "tokens")
    text = text_of_split(tokens, "validation")
    facts = {"end_id": tokens.vocabulary.end_id, "unknown_id": tokens.vocabulary.unknown_id}
    nats = TokenNats(np.ones(len(text.tokens_N), np.float32), text.tokens_N.astype(np.uint32), facts, text.begins_N)
    parts = {part.name: part for part in by_position(nats)}
    assert parts["word 1"].predictions == text.sentences
    assert sum(part.predictions for part in parts.values()) == text.predictions
    assert parts["word 1"].perplexity > math.e  # the nats of all pieces of a first word


def whole_words() -> tuple[WordVocabulary, PieceVocabulary]:
    """Vocabularies in which every known word is one id."""
    words = ["".join(letters) for letters in itertools.product("abc", repeat=2)]
    text = "".join(" ".join(words[number:] + words[:number]) + "\n" for number in range(9)) * 20
    known = build_vocabulary(*counted(text.encode()), 3)
    pieces = learnt(text=text.encode(), pieces=256 + 3 + 4 + len(words))
    return known, PieceVocabulary(pieces._model, np.argsort(pieces._id_of_number), pieces.counts_V, known)


def test_the_same_probabilities_give_the_same_perplexity_per_word() -> None:
    """A word model, and a piece model with its probabilities on the pieces that are those words and none on any other."""
    known, pieces = whole_words()
    spelled = {word: pieces.encode(word.encode()).ids_N[:-1].tolist() for word in known.id_to_token if not word.startswith("<")}
    assert all(len(ids) == 1 for ids in spelled.values())
    place_of = [spelled[word][0] if word in spelled else pieces.id_to_token.index(word) for word in known.id_to_token]
    shape = made_config(Path("x")).model
    core, ranks = LanguageModel(shape, seed=3), single_process()
    rows, generator = {}, torch.Generator().manual_seed(1)
    for name, width, nothing in (("input", shape.embedding, 0.0), ("output", core.output_width, 0.0), ("bias", 1, -1e9)):
        of_words = torch.randn(known.size, width, generator=generator)
        of_pieces = torch.full((pieces.size, width), nothing)
        of_pieces[place_of] = of_words
        rows[name] = of_words, of_pieces
    vocabularies: list[Vocabulary] = [known, pieces]
    models = []
    for kind, vocabulary in enumerate(vocabularies):
        input_VD, output_VP, bias_V1 = (rows[name][kind] for name in ("input", "output", "bias"))
        whole = Rows(np.arange(vocabulary.size), input_VD, output_VP, bias_V1.flatten())
        scorer = Scorer.of(core, whole, end_id=vocabulary.end_id, dtype=torch.float32, ranks=ranks)
        models.append(LoadedModel(scorer, vocabulary))
    sentences = ["ab ca aa", "bb never cc never", "cb"]
    by_word, by_piece = (model.score(sentences) for model in models)
    for one, other in zip(by_word, by_piece, strict=True):
        assert other.nats == pytest.approx(one.nats, rel=1e-6)
        assert other.perplexity == pytest.approx(one.perplexity, rel=1e-6)
        assert (other.words, other.unknown) == (one.words, one.unknown)
        assert other.log_probabilities == pytest.approx(one.log_probabilities, rel=1e-5)
    assert sum(score.unknown for score in by_word) == 2


def test_settings_of_the_vocabulary_must_go_together(folder: Path) -> None:
    with pytest.raises(UserError, match="words are always closed"):
        config_of(folder, closed=True)
    with pytest.raises(UserError, match=r"needs vocabulary\.closed=true"):
        config_of(folder, **PIECES, file="words.txt")


def test_a_shard_that_is_missing_is_made_again_with_the_same_pieces(made: Checkpoint, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").symlink_to(folder / "corpus")
    config = config_of(tmp_path, **PIECES)
    before = preprocess(config, progress=False)
    (tmp_path / "tokens" / "train-00002.tokens.npy").unlink()
    after = preprocess(config, progress=False)
    after.verify()
    assert after.manifest == before.manifest


def test_tokens_at_a_url_come_with_all_of_their_vocabulary(made: Checkpoint, folder: Path, tmp_path: Path) -> None:
    tokens = open_tokens(TokensConfig(directory=f"file://{folder}/tokens", cache_directory=str(tmp_path / "cache")))
    assert tokens.vocabulary.label == "closed"
    assert tokens.vocabulary.fingerprint == TokenDirectory.open(folder / "tokens").fingerprint


def test_an_export_takes_its_pieces_along(made: Checkpoint, folder: Path, tmp_path: Path) -> None:
    export_run(folder / "run", tmp_path / "model")
    sentences = ["w1 w2 never w5", "w3"]
    own, exported = (lm1b.load(path) for path in (folder / "run", tmp_path / "model"))
    for one, other in zip(own.score(sentences), exported.score(sentences), strict=True):
        assert np.allclose(one.log_probabilities, other.log_probabilities, atol=1e-5)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "285 pieces of words by SentencePiece (closed)" in card
    (tmp_path / "model" / "vocabulary.model").unlink()
    with pytest.raises(UserError, match=r"vocabulary\.model"):
        lm1b.load(tmp_path / "model")


def test_transformers_is_told_that_it_cannot_spell(folder: Path, made: Checkpoint) -> None:
    huggingface = pytest.importorskip("lm1b.huggingface")
    with pytest.raises(UserError, match=r"pieces of words.*lm1b\.load\(folder\)\.vocabulary\.encode"):
        huggingface.Lm1bTokenizer(vocab_file=str(folder / "tokens" / "vocabulary.txt"))
