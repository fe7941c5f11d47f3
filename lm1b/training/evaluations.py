"""A result of the exact evaluator, one line of evaluations.jsonl, and whatever is asked of results.

1. lm1b/evaluation makes an `Evaluation` of each checkpoint, text and kind of weights, and appends its line.
2. Retention asks for the best on validation, the watcher for what has been scored, the report, TensorBoard and exported models for all.
3. Lines of older programs lack what was added since; it is None, or what was meant then.

>>> evaluation = Evaluation.from_line(line)         # {"step": 100, "split": "validation", "word_perplexity": 98.2, ...}
>>> evaluation.in_words()
'step 100: word perplexity 98.20 on validation: 1,200 predictions, 0.50 % unknown, carry, 32 lanes, ema weights, fp32, 3.1 s'
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from lm1b.config import Config, EvaluationConfig, Split
from lm1b.data.text.benchmark import HELD_OUT_COUNTS, VOCABULARY_SIZE
from lm1b.errors import UserError
from lm1b.metrics import EVALUATED

Weights = Literal["raw", "ema"]
KINDS: dict[str, list[Weights]] = {"raw": ["raw"], "ema": ["ema"], "both": ["ema", "raw"]}  # by evaluation.weights
LARGEST_MEAN_NATS = 700.0  # their exponential is a float, with room for sums
TEST_FILE = "news.en.heldout-00000-of-00050"  # the benchmark's: every look at it is counted


def check_weights(weights: str) -> None:
    """Raises UserError for a kind of weights that is none."""
    if weights not in KINDS["both"]:
        raise UserError(f"weights must be one of {', '.join(KINDS['both'])}, found {weights}")


def perplexity(nats: float, predictions: float) -> float:
    """exp(nats / predictions), the one place where nats become a perplexity; infinite where that is beyond a float, or no number."""
    mean = nats / predictions
    return math.exp(mean) if mean < LARGEST_MEAN_NATS else math.inf


def text_key(vocabulary: str, split: str, files: Sequence[str], predictions: int, unknown: int) -> str:
    """Names a text and the vocabulary that spells it; the key of a run's report/baselines.json. vocabulary: its fingerprint."""
    return f"{vocabulary} {split} {' '.join(files)} {predictions} {unknown}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A text's nats under one kind of weights of one checkpoint. The fields are the line's, in its order.

    files: of the split, or as given. lanes: None where the state is reset. has_average: whether the checkpoint holds averaged weights.
    nats, word_perplexity: None where they are no finite number. predictions: words + sentences; tokens: ids, more of them where words are
    spelled by pieces. official: the benchmark's file that the text is. is_test: whether it is a test text, or files with one among them.
    vocabulary: its fingerprint. look: the call that it is of.
    """

    step: int
    checkpoint: str
    split: Split | Literal["files"]
    files: list[str]
    state: str
    lanes: int | None
    precision: str
    weights: Weights
    has_average: bool = True
    nats: float | None
    predictions: int
    tokens: int | None = None
    words: int
    sentences: int
    unknown: int
    word_perplexity: float | None
    label: str | None = None
    official: str | None = None
    is_test: bool = False
    trained_on_official: bool = False
    vocabulary: str
    vocabulary_size: int | None = None
    epoch: float | None = None
    spectral_radius: dict[str, float] = field(default_factory=dict)
    seconds: float
    finished_at: str
    look: str | None = None

    @classmethod
    def from_line(cls, line: dict[str, Any], source: str = "a line") -> Evaluation:
        """A line as it was read. Raises UserError that names `source`, and what every line has and this one lacks."""
        known = fields(cls)
        needed = [each.name for each in known if each.default is MISSING and each.default_factory is MISSING]
        if missing := [name for name in needed if name not in line]:
            raise UserError(f"{source}: a result without {', '.join(missing)}, which every one has; remove its line to go on")
        return cls(**{each.name: line[each.name] for each in known if each.name in line})

    def as_line(self) -> dict[str, Any]:
        """The line's keys and values, in order; without `look` as long as it is of no call."""
        line = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.look is None:
            del line["look"]
        return line

    def only(self, names: Iterable[str]) -> dict[str, Any]:
        """Some of the line's keys and values, in the order of `names`."""
        return {name: getattr(self, name) for name in names}

    @property
    def text_key(self) -> str:
        """Names the text and the vocabulary that spells it: equal for two results whose figures may be laid side by side."""
        return text_key(self.vocabulary, self.split, self.files, self.predictions, self.unknown)

    @property
    def protocol(self) -> tuple[str, int | None, str]:
        """How it was scored, whatever the text and the weights: state, lanes and precision."""
        return self.state, self.lanes, self.precision

    def made_with(self, settings: EvaluationConfig) -> bool:
        """Whether it was made with these settings, whatever the text and the weights."""
        return self.protocol == (settings.state, settings.lanes if settings.state == "carry" else None, settings.precision)

    @property
    def stands_for(self) -> set[Weights]:
        """Kinds of weights that it tells of: its own, and `ema` too where the checkpoint holds no average."""
        return {self.weights} if self.has_average else {self.weights, "ema"}

    @property
    def is_of_files(self) -> bool:
        """Whether the text is files of the user's, and no split of the token directory."""
        return self.split == "files"

    @property
    def is_test_look(self) -> bool:
        """Whether it is a look at a test text; lines of older programs tell it by what they are of."""
        return self.is_test or self.split == "test" or self.official == TEST_FILE

    @property
    def text_name(self) -> str:
        """Which text: the benchmark's file, the split, or the files' names without their folders."""
        return self.official or (", ".join(Path(file).name for file in self.files) if self.is_of_files else self.split)

    @property
    def files_in_short(self) -> str:
        """Which files, of a split too: the first one's name and how many more."""
        more = f" + {len(self.files) - 1}" if len(self.files) > 1 else ""
        return (self.official or "".join(Path(file).name for file in self.files[:1])) + more

    @property
    def tag(self) -> str:
        """Of its perplexity in TensorBoard and the like: a curve a split, state and kind of weights."""
        return f"{EVALUATED['word_perplexity'].tag}/{self.split}_{self.state}_{self.weights}"

    @property
    def state_in_words(self) -> str:
        """`carry, 32 lanes` or `reset`."""
        return f"{self.state}, {self.lanes} lanes" if self.lanes else self.state

    @property
    def predictions_in_words(self) -> str:
        """How many, and of how many pieces where words are spelled by pieces."""
        spelled = f" in {self.tokens:,} pieces ({self.label})" if self.tokens not in (None, self.predictions) else ""
        return f"{self.predictions:,} predictions{spelled}"

    @property
    def unknown_percent(self) -> float:
        """Of the predictions, those of `<UNK>`."""
        return 100 * self.unknown / self.predictions

    def in_words(self) -> str:
        """The result, one line."""
        perplexity = "not a finite number" if self.word_perplexity is None else f"{self.word_perplexity:.2f}"
        checked = ""
        if self.official:
            counted = self.official in HELD_OUT_COUNTS and self.vocabulary_size == VOCABULARY_SIZE
            checked = " (official by its MD5" + (", and its counts are the published ones)" if counted else ")")
        return (
            f"step {self.step}: word perplexity {perplexity} on {self.text_name}{checked}: {self.predictions_in_words}, "
            f"{self.unknown_percent:.2f} % unknown, {self.state_in_words}, {self.weights} weights, {self.precision}, {self.seconds:.1f} s"
        )


def best_on_validation(evaluations: Sequence[Evaluation], config: Config) -> Evaluation | None:
    """The lowest word perplexity on validation among those that compare, the earliest of equals.

    Those made with the config's own evaluation settings, averaged weights where it asks for both, of the text that the run was first
    scored on: with another `tokens.directory` its validation is another text.
    """
    settings = config.evaluation
    kind = "raw" if settings.weights == "raw" or config.training.ema_decay is None else "ema"
    on_validation = [each for each in evaluations if each.split == "validation"]
    fitting = [
        (each.word_perplexity, each.step, each)
        for each in on_validation
        if each.word_perplexity is not None
        and each.made_with(settings)
        and kind in each.stands_for
        and (each.predictions, each.unknown) == (on_validation[0].predictions, on_validation[0].unknown)
    ]
    return min(fitting, key=lambda found: found[:2], default=(None, None, None))[2]


def count_test_looks(evaluations: Iterable[Evaluation]) -> int:
    """How often a run was scored on a test text: all results of one call are one look."""
    on_test = [each for each in evaluations if each.is_test_look]
    return len({number if each.look is None else each.look for number, each in enumerate(on_test)})
