"""The config: strict, described, all problems at once; every shipped file loads and builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import REPOSITORY, tiny_settings

from lm1b.config import Config, load_config, parse_config
from lm1b.errors import UserError
from lm1b.model.language_model import LanguageModel
from lm1b.sequence_tasks.config import load_task_experiment
from lm1b.strict import Section

SHIPPED = sorted(path for path in (REPOSITORY / "configs").glob("*.json") if not path.name.endswith("schema.json"))


def problems(settings_json: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(settings_json)
    return str(caught.value)


def test_all_problems_at_once_with_the_nearest_name() -> None:
    settings_json = tiny_settings(Path("x"), "run", model={"hiden": 3, "hidden": "a"}, batches={"lanes": 0})
    text = problems(settings_json)
    assert "model.hiden: unknown key, did you mean `hidden`?" in text
    assert 'model.hidden: Input should be a valid integer, found "a"' in text
    assert "batches.lanes" in text
    assert "\n" not in text


def test_a_problem_in_a_section_of_several_kinds_has_the_path_that_can_be_set() -> None:
    path = REPOSITORY / "configs" / "tasks" / "adding_irnn.json"
    with pytest.raises(UserError) as caught:
        load_task_experiment(path, ["task.train_siz=3", "task.seed=-1"])
    assert "task.train_siz: unknown key, did you mean `train_size`?" in str(caught.value)
    assert "task.seed: Input should be greater than or equal to 0, found -1" in str(caught.value)
    with pytest.raises(UserError, match=r"json: task: Input tag 'addin' found"):
        load_task_experiment(path, ["task.kind=addin"])


def test_what_must_divide() -> None:
    settings_json = tiny_settings(Path("x"), "run", training={"micro_batches": 3})
    assert "batches.lanes (=8) must be divisible by training.micro_batches (=3)" in problems(settings_json)


def test_epochs_or_steps_but_not_both() -> None:
    assert "exactly one of" in problems(tiny_settings(Path("x"), "run", training={"epochs": 1.0}))


def test_tables_are_tied_only_where_widths_and_softmax_allow_it() -> None:
    tied = {"tie_tables": True, "embedding": 16}
    assert parse_config(tiny_settings(Path("x"), "run", model=tied)).model.tie_tables
    wide = problems(tiny_settings(Path("x"), "run", model={**tied, "embedding": 12}))
    assert wide.endswith("model: tie_tables needs embedding (=12) to be as wide as the softmax's input (=16)")
    assert "model.tie_tables needs softmax.kind=sampled or full" in problems(
        tiny_settings(Path("x"), "run", model=tied, softmax={"kind": "adaptive"})
    )


def test_a_whole_number_is_no_truth_value_and_no_fraction() -> None:
    assert "batches.steps" in problems(tiny_settings(Path("x"), "run", batches={"steps": 2.5}))
    assert "training.evaluate_alongside" in problems(tiny_settings(Path("x"), "run", training={"evaluate_alongside": 1}))


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(tiny_settings(tmp_path, "run")))
    config = load_config(path, ["batches.lanes=16", "corpus.path=/a b", "training.ema_decay=null"])
    assert (config.batches.lanes, config.corpus.path, config.training.ema_decay) == (16, "/a b", None)
    with pytest.raises(UserError, match="expected a\\.b=value"):
        load_config(path, ["batches.lanes"])


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1', "nul"])
def test_not_a_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"c\.json"):
        load_config(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "none.json")


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8))
def test_any_json_is_a_config_or_a_users_mistake(value: Any) -> None:
    with pytest.raises(UserError):
        parse_config(value)


def test_every_field_is_described() -> None:
    def walk(section: type[Section]) -> None:
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                walk(field.annotation)
            else:
                assert field.description, f"{section.__name__}.{name}"

    walk(Config)


def test_never_changes() -> None:
    config = parse_config(tiny_settings(Path("x"), "run"))
    with pytest.raises(ValueError, match="frozen"):
        config.batches.lanes = 3  # type: ignore[misc]
    assert parse_config(config.as_json()) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load_and_build(path: Path) -> None:
    config = load_config(path)
    assert config.run.directory == f"runs/{path.stem}"
    # Built at a 32nd of its width, since BIGLSTM's own weights would take 600 MB; the shape is checked, not the size.
    narrow = {name: max(1, value // 32) for name, value in config.model.model_dump().items() if name in WIDTHS and value}
    model = LanguageModel(config.model.model_copy(update=narrow), seed=1)
    x_TBD = torch.zeros(3, 2, narrow["embedding"])
    hidden_TBP, state = model.hidden(x_TBD, model.zero_state(2, "cpu"))
    assert hidden_TBP.shape == (3, 2, model.output_width)
    assert len(state) == config.model.layers * (2 if config.model.cell == "lstm" else 1)


WIDTHS = ("embedding", "hidden", "projection", "recurrent_projection")


def test_what_ships() -> None:
    expected = ["irnn_lm", "irnn_4x512_lm", "irnn_lm_pieces", "lstm_lm", "lstm_2048_512_lm", "tanh_rnn_lm", "biglstm_lm"]
    expected += ["irnn_news", "irnn_news_pieces", "lstm_news"]
    assert sorted(path.stem for path in SHIPPED) == sorted(expected)
    paper = load_config(REPOSITORY / "configs" / "irnn_lm.json").model
    assert (paper.cell, paper.layers, paper.hidden, paper.projection) == ("irnn", 1, 1024, 512)
    big = load_config(REPOSITORY / "configs" / "biglstm_lm.json").model
    assert (big.layers, big.hidden, big.recurrent_projection) == (2, 8192, 1024)
