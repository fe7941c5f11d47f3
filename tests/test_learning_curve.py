"""Learning curves over seeds: what the README's command finds on a tiny corpus, when a perplexity is reached, who learns alike."""

from __future__ import annotations

import copy
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from command_runs import run
from learning_curve import compare_with
from parts.learning_curve.compare import check_comparable, compare, seconds_to
from readme_commands import commands_of_the_readme
from tiny import write_settings

from lm1b.errors import UserError
from lm1b.files import read_json
from lm1b.processor import cpu_name


def curve(*points: tuple[int, float | None]) -> list[dict[str, Any]]:
    """(words, nats) -> a curve at 100 words a second."""
    return [
        {"step": words // 10, "words": words, "seconds": words / 100, "word_perplexity": None if nats is None else math.exp(nats)}
        for words, nats in points
    ]


def test_the_time_to_a_perplexity_lies_between_two_points() -> None:
    found = curve((1000, 6.0), (2000, None), (3000, 5.0), (4000, 4.5))
    assert seconds_to(found, math.exp(5.5)) == pytest.approx(20.0)  # a point that is not finite is passed over
    assert seconds_to(found, math.exp(4.5)) == pytest.approx(40.0)
    assert seconds_to(found, math.exp(4.6)) == pytest.approx(38.0)
    assert seconds_to(found, math.exp(4.4)) is None
    assert seconds_to(found, math.exp(7.0)) == 10.0  # at most: it was there when first looked at


def test_two_groups_differ_where_their_means_are_further_apart_than_seeds() -> None:
    ours = [curve((1000, 5.0), (2000, 4.0), (3000, 3.5)), curve((1000, 5.2), (2000, 4.0), (3000, 3.6))]
    theirs = [curve((500, 5.6), (1500, 4.6), (2500, 3.6)), curve((500, 5.5), (1500, 4.7), (2500, 3.6))]
    first, second = compare(ours, theirs)  # 3,000 words are more than theirs have seen
    assert (first.words, second.words) == (1000, 2000)
    assert (first.ours, first.theirs) == pytest.approx((math.exp(5.1), math.exp(5.1)))
    assert (first.spread, first.is_within) == (pytest.approx(0.2), True)
    assert second.difference == pytest.approx(4.0 - 4.125)
    assert (second.spread, second.is_within) == (pytest.approx(0.05), False)
    with pytest.raises(UserError, match="needs two seeds of each, found 1"):
        compare(ours[:1], theirs)
    with pytest.raises(UserError, match="no common number of words"):
        compare(ours, [part[:1] for part in theirs])
    with pytest.raises(UserError, match="no finite perplexity at all"):
        compare(ours, [theirs[0], curve((500, None), (1500, None), (2500, None))])


@pytest.fixture(scope="module")
def found(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The README's command, on the CPU, with the tiny corpus and model put in."""
    folder = tmp_path_factory.mktemp("curve")
    config = write_settings(folder, "tiny", training={"total_steps": 60})
    (line,) = (line for line in commands_of_the_readme() if "tools/learning_curve.py" in line)
    words = shlex.split(line.replace("NEWS_MIX", str(tiny_folder / "corpus")).replace("out.json", str(folder / "out.json")))
    assert words[0] == "python"
    more = ["--config", str(config), "--tokens", str(tiny_folder / "tokens"), "--device", "cpu", "--points", "4"]
    done = run([sys.executable, *words[1:], *more])
    assert done.returncode == 0, done.stderr
    return folder, read_json(folder / "out.json")


def test_a_curve_of_each_seed(found: tuple[Path, dict[str, Any]]) -> None:
    _, result = found
    assert result["command"].startswith("python tools/learning_curve.py --corpus PATH/corpus --seeds 1 2 --json PATH/out.json")
    assert result["command"].endswith("--config PATH/tiny.json --tokens PATH/tokens --device cpu --points 4")
    experiment = result["experiment"]
    assert experiment["machine"] == cpu_name()
    assert (experiment["device"], experiment["precision"]) == ("cpu", "fp32")
    assert experiment["text"]["files"] == ["news.en.heldout-00001-of-00002"]  # not the test file
    assert list(result["seeds"]) == ["1", "2"]
    for seed in result["seeds"].values():
        assert [point["step"] for point in seed["curve"]] == [15, 30, 45, 60]
        assert [point["words"] for point in seed["curve"]] == [15 * 80, 30 * 80, 45 * 80, 60 * 80]
        # See test_gpu_training.py for the perplexity itself.
        assert seed["curve"][0]["word_perplexity"] > seed["curve"][-1]["word_perplexity"] > 1
        seconds = [point["seconds"] for point in seed["curve"]]
        assert seconds == sorted(seconds)
        assert seed["seconds_to_perplexity_150"] == pytest.approx(seconds_to(seed["curve"], 150.0), abs=0.01)
    one, other = ([point["word_perplexity"] for point in seed["curve"]] for seed in result["seeds"].values())
    assert one != other


def test_the_same_file_beside_itself_is_within(found: tuple[Path, dict[str, Any]]) -> None:
    folder, result = found
    ours = copy.deepcopy(result)
    text = compare_with(folder / "out.json", ours)
    assert "| words | cpu, fp32 | cpu, fp32 |" in text
    assert "within the spread of the seeds at 4 of 4 points" in text
    assert [row["difference_nats"] for row in ours["beside"]["rows"]] == [0.0] * 4
    wider = copy.deepcopy(result["experiment"])
    wider["model"]["hidden"] += 1
    with pytest.raises(UserError, match="of another experiment, it differs in model;"):
        check_comparable(result["experiment"], wider, "out.json")
    (folder / "else.json").write_text("[]")
    with pytest.raises(UserError, match="not a file of tools/learning_curve"):
        compare_with(folder / "else.json", ours)
    faster = result["experiment"] | {"device": "cuda", "precision": "bf16", "machine": "a card"}
    check_comparable(result["experiment"], faster, "out.json")
