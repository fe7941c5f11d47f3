"""Words spelled by pieces: text comes back, words are counted, and a figure per word is the same whatever the ids."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_checkpoint, made_config, made_text
from sentencepiece import SentencePieceProcessor
from tiny import write_corpus

import lm1b
from lm1b.config import Config, TokensConfig, VocabularyConfig, parse_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.data.text.tokenized import number_tokens
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.remote import open_tokens
from lm1b.data.vocabulary.files import load_vocabulary
from lm1b.data.vocabulary.piece_training import build_piece_vocabulary, sampled_lines
from lm1b.data.vocabulary.pieces import SPACE, PieceVocabulary
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

SENTENCES = [
    "the president said on monday that the talks would go on .",
    "the presidents of the banks said that they were talking .",
    "he said the bank would pay , and on tuesday it paid .",
    "they talk , they walk , they pay : the bankers said so on monday .",
]
TEXT = "".join(f"{sentence}\n" for sentence in [*SENTENCES * 5, "the rarest words"]).encode()
SETTINGS = VocabularyConfig(kind="sentencepiece", pieces=295)


def counted(text: bytes) -> tuple[pa.BinaryArray, np.ndarray]:
    keys, _, counts = number_tokens(text)
    return pa.array([key[:-1] for key in keys.to_pylist()], pa.binary()), counts


def learnt(model: str = "unigram", *, closed: bool = False, text: bytes = TEXT, pieces: int = 295) -> PieceVocabulary:
    words, counts = counted(text)
    known = build_vocabulary(words, counts, 5) if closed else None
    return build_piece_vocabulary(words, counts, SETTINGS.model_copy(update={"piece_model": model, "pieces": pieces}), known)


VOCABULARIES = {"unigram": learnt("unigram"), "bpe": learnt("bpe"), "closed": learnt(closed=True)}
KNOWN = build_vocabulary(*counted(TEXT), 5)

ODD = st.text(st.sampled_from(f"thebank{SPACE}\u2585\x00\x01\x85\u2028\u00a0\ufeffé<>/SUNK0x\U0001f600"), min_size=1, max_size=9)
ODD_WORDS = st.one_of(ODD, st.text(min_size=1, max_size=6), st.sampled_from(["<UNK>", "<0x41>", SPACE, "president", "pays", "xyz" * 400]))


@pytest.mark.parametrize("name", ["unigram", "bpe"])
@settings(max_examples=150, deadline=None)
@given(lines=st.lists(st.lists(ODD_WORDS, max_size=6), max_size=4))
def test_every_word_comes_back_as_it_was(name: str, lines: list[list[str]]) -> None:
    words = [[word for each in line for word in each.translate(dict.fromkeys(map(ord, " \t\n\r\v\f"), " ")).split(" ") if word]
             for line in lines]  # fmt: skip
    words = [[word.encode("utf-8", "ignore").decode() for word in line] for line in words]  # hypothesis has lone surrogates
    words = [[word for word in line if word and word not in ("</S>", "<S>")] for line in words]
    vocabulary = VOCABULARIES[name]
    text = "x\n" + "".join(" ".join(line) + "\n" for line in words)  # a mark of byte order at the very front is no text
    encoded = vocabulary.encode(text.encode())
    filled = [["x"], *(line for line in words if line)]
    assert vocabulary.decode(encoded.ids_N) == [" ".join(line) for line in filled]
    assert (encoded.words, encoded.sentences, encoded.unknown) == (sum(map(len, filled)), len(filled), 0)
    assert int(vocabulary.begins(encoded.ids_N).sum()) == encoded.words + encoded.sentences


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_fall_by_training_count_and_ties_go_by_bytes(name: str) -> None:
    vocabulary = VOCABULARIES[name]
    found = np.bincount(vocabulary.encode(TEXT).ids_N, minlength=vocabulary.size)
    assert vocabulary.counts_V.tolist() == found.tolist()
    ranked = [(-count, piece.encode()) for count, piece in zip(found.tolist(), vocabulary.id_to_token, strict=True)]
    assert ranked[:-1] == sorted(ranked[:-1])
    assert (vocabulary.id_to_token[-1], vocabulary.size, vocabulary.start_id) == ("<S>", 295, 294)


@pytest.mark.parametrize("name", ["unigram", "bpe"])
def test_words_are_segmented_as_the_library_segments_sentences(name: str) -> None:
    vocabulary = VOCABULARIES[name]
    theirs = SentencePieceProcessor(model_proto=vocabulary._model)
    for sentence in SENTENCES:
        ours = [vocabulary.id_to_token[number] for number in vocabulary.encode(sentence.encode()).ids_N[:-1]]
        assert ours == theirs.encode(sentence, out_type=str)


def test_the_same_counts_make_the_same_vocabulary_and_the_fingerprint_tells_others() -> None:
    words, counts = counted(TEXT)
    turned = np.arange(len(words))[::-1]
    again = build_piece_vocabulary(words.take(pa.array(turned)), counts[turned], SETTINGS, None)
    first = VOCABULARIES["unigram"]
    assert again.fingerprint == first.fingerprint
    assert again.id_to_token == first.id_to_token
    order_V = np.argsort(first._id_of_number)
    order_V[[3, 4]] = order_V[[4, 3]]
    swapped = PieceVocabulary(first._model, order_V, first.counts_V, None)
    shut = PieceVocabulary(first._model, np.argsort(first._id_of_number), first.counts_V, KNOWN)
    assert len({vocabulary.fingerprint for vocabulary in (first, swapped, shut, *VOCABULARIES.values())}) == 5


def test_the_sample_is_drawn_from_the_counts() -> None:
    words, counts = pa.array([b"rare", b"often", b"never"], pa.binary()), np.array([3, 997, 0])
    everything = Counter(word for line in sampled_lines(words, counts, 10_000, 1) for word in line.split(" "))
    assert everything == {"rare": 3, "often": 997}
    some = [Counter(word for line in sampled_lines(words, counts, 100, seed) for word in line.split(" ")) for seed in range(40)]
    assert all(99 <= sample["often"] <= 100 and sample["rare"] <= 1 for sample in some)
    assert 2 <= sum(sample["rare"] for sample in some) <= 30  # 0.3 of 100 words each
    many = pa.array([b"w%d" % number for number in range(50)], pa.binary())
    assert len({tuple(sampled_lines(many, np.full(50, 20), 100, seed)) for seed in (1, 1, 2)}) == 2


ODD_LINES = [
    (b"", 0, 0),
    (b" \t ", 0, 0),
    (b"the\x00 bank \x01", 3, 2),
    (b"</S> <UNK> <S> x</S>", 4, 4),
    ("the w\u0301 \u2028bank".encode(), 3, 2),
    (b" ".join([b"the"] * 100_000), 100_000, 0),
    (b"the\r", 1, 0),
    (b"x" * 100_000, 1, 1),
]


@pytest.mark.parametrize(("line", "words", "unknown"), ODD_LINES, ids=range(len(ODD_LINES)))
def test_any_line_has_a_stated_treatment(line: bytes, words: int, unknown: int) -> None:
    for name, vocabulary in VOCABULARIES.items():
        found = vocabulary.encode(line)
        assert (found.words, found.unknown) == (words, unknown if name == "closed" else 0)
        assert found.sentences == (words > 0)
    closed, word = VOCABULARIES["closed"].encode(line), KNOWN.encode(line)
    assert closed[1:] == word[1:]
    with pytest.raises(UserError, match="not UTF-8 at line 1"):
        VOCABULARIES["bpe"].encode(line + b"\xff")


def test_closed_spells_an_unknown_word_by_one_id() -> None:
    closed = VOCABULARIES["closed"]
    ids = closed.encode(b"the zebra said <UNK> .\n").ids_N
    assert [closed.id_to_token[number] for number in ids if number == closed.unknown_id] == ["<UNK>"] * 2
    assert closed.decode(ids) == ["the <UNK> said <UNK> ."]
    assert (closed.label, VOCABULARIES["bpe"].label, KNOWN.label) == ("closed", "open", "closed")


@pytest.mark.parametrize("name", VOCABULARIES)
def test_files_are_read_back_and_damage_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vocabulary.txt"
    vocabulary = VOCABULARIES[name]
    vocabulary.save(path)
    loaded = load_vocabulary(path)
    assert (loaded.fingerprint, loaded.label, loaded.kind) == (vocabulary.fingerprint, vocabulary.label, "sentencepiece")
    assert loaded.counts_V.tolist() == vocabulary.counts_V.tolist()
    assert loaded.encode(TEXT).ids_N.tolist() == vocabulary.encode(TEXT).ids_N.tolist()
    for beside in set(tmp_path.iterdir()) - {path}:
        data = beside.read_bytes()
        beside.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{beside.name}: belongs to vocabulary\.txt with SHA-256"):
            load_vocabulary(path)
        beside.write_bytes(data)
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[:-1], [*lines[:3], *lines[4:]], [*lines[:3], lines[3], *lines[3:]], [lines[0]], [*lines, b"x y\n"]):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(UserError, match="not a vocabulary of pieces"):
            load_vocabulary(path)


@pytest.mark.parametrize("pieces", [100_000, 10])
def test_a_number_of_pieces_that_cannot_be_learnt_is_one_line(pieces: int) -> None:
    with pytest.raises(UserError, match=rf"vocabulary\.pieces={pieces}: SentencePiece cannot learn so many") as caught:
        learnt(pieces=pieces)
    assert "\n" not in str(caught.value)


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
