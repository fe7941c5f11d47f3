"""A result keeps its line's keys and their order, reads older lines, and answers the same questions for all who ask."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import made_checkpoint, made_config, made_evaluation, made_tokens

from lm1b.config import override_config
from lm1b.data.text.benchmark import VOCABULARY_SIZE
from lm1b.errors import UserError
from lm1b.files import append_json_line, read_json_lines, seal
from lm1b.training.evaluations import TEST_FILE, Evaluation, count_test_looks
from lm1b.training.run_folder import RunFolder

# As every evaluations.jsonl has them; tools of others read these files.
KEYS = [
    *("step", "checkpoint", "split", "files", "state", "lanes", "precision", "weights", "has_average", "nats", "predictions", "tokens"),
    *("words", "sentences", "unknown", "word_perplexity", "label", "official", "is_test", "trained_on_official"),
    *("vocabulary", "vocabulary_size", "epoch", "spectral_radius", "seconds", "finished_at", "look"),
]


def test_a_line_has_these_keys_in_this_order_and_reads_back(tmp_path: Path) -> None:
    whole = made_evaluation(look="1", tokens=250, label="open", spectral_radius={"layer 0": 0.9}, epoch=0.5)
    assert list(whole.as_line()) == KEYS
    assert list(made_evaluation().as_line()) == KEYS[:-1], "of no call"
    folder = RunFolder(tmp_path)
    for each in (whole, made_evaluation()):
        append_json_line(folder.evaluations, seal(each.as_line()))
    assert folder.read_evaluations() == [whole, made_evaluation()]
    assert [list(line) for line in read_json_lines(folder.evaluations)] == [KEYS, KEYS[:-1]]


def test_an_older_line_is_read_and_one_without_its_figures_is_refused(tmp_path: Path) -> None:
    line = made_evaluation().as_line()
    added_since = ["has_average", "tokens", "label", "official", "is_test", "trained_on_official", "vocabulary_size", "epoch"]
    added_since += ["spectral_radius"]
    assert Evaluation.from_line({key: line[key] for key in line if key not in added_since}) == made_evaluation()
    assert Evaluation.from_line(line | {"of_a_later_program": 1}) == made_evaluation()
    folder = RunFolder(tmp_path)
    append_json_line(folder.evaluations, line)
    append_json_line(folder.evaluations, {key: line[key] for key in line if key not in ("nats", "seconds")})
    with pytest.raises(UserError, match=r"evaluations\.jsonl:2: .* nats, seconds"):
        folder.read_evaluations()


def test_a_text_is_named_by_the_benchmark_the_split_or_its_files() -> None:
    of_split, of_files = made_evaluation(), made_evaluation(split="files", files=["/a/one.txt", "/b/two.txt"])
    official = made_evaluation(split="files", files=["/a/one.txt"], official=TEST_FILE, vocabulary_size=VOCABULARY_SIZE)
    assert [each.text_name for each in (of_split, of_files, official)] == ["validation", "one.txt, two.txt", TEST_FILE]
    assert [each.files_in_short for each in (of_split, of_files, official)] == ["validation-2 + 1", "one.txt + 1", TEST_FILE]
    assert f"on {TEST_FILE} (official by its MD5, and its counts are the published ones): 200 pred" in official.in_words()
    assert "200 predictions in 250 pieces (open), 2.50 % unknown" in made_evaluation(tokens=250, label="open").in_words()


def test_all_results_of_one_call_are_one_look_at_test() -> None:
    results = [made_evaluation(split="test", look="a"), made_evaluation(split="test", look="a"), made_evaluation(look="b")]
    results += [made_evaluation(split="files", official=TEST_FILE, look="c"), made_evaluation(split="test"), made_evaluation(split="test")]
    assert count_test_looks(results) == 4, "one of each call, and those of older lines, which name none, by themselves"


def test_the_best_is_by_the_run_s_own_settings(tmp_path: Path) -> None:
    made_tokens(tmp_path / "tokens")
    config = made_config(tmp_path)
    made_checkpoint(config, 10)
    folder = RunFolder(config.run.directory)
    for step, perplexity, others in [
        (1, 100.0, {}),
        (2, 90.0, {}),
        (3, 90.0, {}),
        (4, 80.0, {"weights": "raw"}),
        (5, 70.0, {"state": "reset", "lanes": None}),
        (6, 60.0, {"precision": "bf16"}),
        (7, 50.0, {"lanes": 4}),
        (8, 40.0, {"split": "test"}),
        (9, None, {}),
        (10, 30.0, {"predictions": 190}),  # of another token directory
    ]:
        append_json_line(folder.evaluations, made_evaluation(step=step, word_perplexity=perplexity, **others).as_line())

    def best(*overrides: str) -> int | None:
        return folder.best_step(override_config(config, list(overrides)))

    assert folder.best_step() == best() == best("evaluation.weights=both") == 2
    assert best("evaluation.weights=raw") == best("training.ema_decay=null") == 4
    assert best("evaluation.state=reset") == 5
    assert best("evaluation.precision=bf16") == 6
    assert best("evaluation.lanes=4") == 7
    assert best("evaluation.lanes=5") is None
    # A raw result of a checkpoint that holds no average is what `ema` falls back to.
    of_no_average = made_evaluation(step=10, word_perplexity=30.0, weights="raw", has_average=False)
    append_json_line(folder.evaluations, of_no_average.as_line())
    assert best() == 10
