"""What a mirror takes and leaves alone, on runs made by hand and a store that is a folder: no training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from made_run import made_checkpoint, made_config, made_tokens

from lm1b.config import Config
from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.training.checkpoints.checkpoint import list_checkpoints
from lm1b.training.checkpoints.mirror import Mirror
from lm1b.training.resume import FETCHES, Continuation

THEIRS = '{"step": 1}\n'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made_tokens(tmp_path / "tokens")
    return made_config(tmp_path)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


def mirrored(config: Config, there: Path, *steps: int) -> Mirror:
    """Checkpoints of these steps and a log, all in the mirror; nothing is left here."""
    run = Path(config.run.directory)
    for step in steps:
        made_checkpoint(config, step)
    (run / "metrics.jsonl").write_text(THEIRS)
    mirror = Mirror(config, f"file://{there}")
    assert mirror.bring()
    shutil.rmtree(run)
    return mirror


def steps_here(config: Config) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(Path(config.run.directory))]


def spoil(folder: Path) -> None:
    data = bytearray((folder / "core.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "core.safetensors").write_bytes(data)


def accept(state: dict[str, Any]) -> None:
    assert "step" in state


def refuse(state: dict[str, Any]) -> None:
    raise UserError("another experiment")


def test_a_run_that_was_refused_leaves_the_logs_there(config: Config, there: Path) -> None:
    mirrored(config, there, 10)
    made_checkpoint(config, 10)
    (Path(config.run.directory) / "metrics.jsonl").write_text("ours\n")
    mirror = Mirror(config, f"file://{there}")
    mirror.close()
    assert (there / "metrics.jsonl").read_text() == THEIRS
    mirror.start(print)
    mirror.close()
    assert (there / "metrics.jsonl").read_text() == "ours\n"


@pytest.mark.parametrize("step", [10, 30])
def test_another_runs_mirror_is_refused_though_this_run_is_as_far(config: Config, there: Path, step: int) -> None:
    mirrored(config, there, 10)
    made_checkpoint(config, step)
    before = sorted(path for path in there.rglob("*"))
    with pytest.raises(UserError, match=f"run.mirror=file://{there}: another experiment"):
        Mirror(config, f"file://{there}").there.fetch_newer(refuse, print)
    assert sorted(path for path in there.rglob("*")) == before
    assert Mirror(config, f"file://{there}").there.fetch_newer(accept, print) is None
    assert steps_here(config) == [step]


def test_where_the_checkpoint_is_the_logs_are(config: Config, there: Path) -> None:
    mirror = mirrored(config, there, 10)
    (there / "metrics.jsonl").write_text(THEIRS * 1000)
    in_the_way = Path(config.run.directory) / "metrics.jsonl"
    in_the_way.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        mirror.there.fetch_newer(accept, print)
    assert steps_here(config) == []
    in_the_way.rmdir()
    assert mirror.there.fetch_newer(accept, print) == 10
    assert in_the_way.read_text() == THEIRS * 1000


def test_a_fresh_host_does_not_begin_anew_where_all_there_is_damaged(config: Config, there: Path) -> None:
    mirror = mirrored(config, there, 10, 20)
    for step in (10, 20):
        spoil(there / f"checkpoints/step_000000{step}")
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint there is damaged \(step_00000010, step_00000020\)"):
            mirror.there.fetch_newer(accept, said.append)
    assert len(said) == 2
    assert (there / "metrics.jsonl").read_text() == THEIRS
    shutil.rmtree(there / "checkpoints")
    assert mirror.there.fetch_newer(accept, print) is None


def test_a_checkpoint_that_goes_while_it_is_fetched_gives_way_to_the_one_before(config: Config, there: Path) -> None:
    mirror = mirrored(config, there, 10, 20)

    def accept_once(state: dict[str, Any]) -> None:
        if state["step"] == 20:
            shutil.rmtree(there / "checkpoints/step_00000020")

    assert mirror.there.fetch_newer(accept_once, print) == 10


def test_a_disk_that_damages_what_is_fetched_is_not_fetched_to_for_ever(config: Config, there: Path) -> None:
    mirror = mirrored(config, there, 10, 20)
    directory = Path(config.run.directory)
    damage: list[str] = []

    class Spoiling(Continuation):
        def accept(self, state: dict[str, Any]) -> None:
            if steps_here(config)[-1:] == [20]:
                spoil(list_checkpoints(directory)[-1].path)
                assert len(damage) < FETCHES, "fetched once more"

    shutil.copytree(there / "checkpoints/step_00000010", directory / "checkpoints/step_00000010")
    mirrored_config = config.model_copy(update={"run": config.run.model_copy(update={"mirror": mirror.there.url})})
    tokens: Any = None  # only `accept` would look at them
    checkpoint = Spoiling(mirrored_config, tokens).newest_checkpoint(single_process(), mirror, print, damage.append)
    assert checkpoint is not None
    assert checkpoint.step == 10
    assert len(damage) == FETCHES


def test_logs_are_copied_again_only_when_they_have_grown(config: Config, there: Path) -> None:
    log = Path(config.run.directory) / "metrics.jsonl"
    log.parent.mkdir()
    log.write_text(THEIRS)
    mirror = Mirror(config, f"file://{there}")
    assert mirror.bring(logs_only=True)
    (there / "metrics.jsonl").write_text("as it was")
    log.touch()
    assert mirror.bring(logs_only=True)
    assert (there / "metrics.jsonl").read_text() == "as it was"
    log.write_text(THEIRS * 2)
    assert mirror.bring(logs_only=True)
    assert (there / "metrics.jsonl").read_text() == THEIRS * 2
