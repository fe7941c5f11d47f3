"""An exported folder: what the run's checkpoint says, whole or not there, and nothing of the machine it was made on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import run_script
from made_run import made_checkpoint, made_config, made_run_directory, made_text, made_tokens
from safetensors.torch import load_file, save_file
from tiny import REPOSITORY, environment

import lm1b
from lm1b.config import override_config
from lm1b.errors import UserError
from lm1b.evaluation.scoring.perplexity import evaluate_checkpoint
from lm1b.evaluation.scoring.texts import text_of_split
from lm1b.evaluation.trained.export import export_run
from lm1b.files import append_json_line, digest_of_file, read_json, read_sealed_json, seal, write_json, write_sealed_json
from lm1b.training.checkpoints.checkpoint import Checkpoint, list_checkpoints, table_file
from lm1b.training.evaluations import Evaluation

SENTENCES = made_text(3, 40).splitlines()
TABLES = {"input_table": "input_table.weight", "output_table": "output_table.weight", "output_bias": "output_table.bias"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run_directory(tmp_path_factory.mktemp("made"), 10, 20)


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest checkpoint, exported."""
    return export_run(run, tmp_path_factory.mktemp("exported") / "model").path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """One that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def command(script: str, *options: object, text: str = "") -> subprocess.CompletedProcess[str]:
    return run_script(*script.split(), *(str(option) for option in options), text=text)


def nats(path: Path, **options: str) -> np.ndarray:
    return np.array([score.nats for score in lm1b.load(path, **options).score(SENTENCES)])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of all files, by the library."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"cell": "irnn", "projection": None},
        {"cell": "np_rnn", "input_weight": "np_rnn", "layers": 1},
        {"cell": "lstm", "projection": None, "recurrent_projection": 4},
        {"embedding": 5, "tie_tables": True},
        {"softmax": {"kind": "adaptive", "cutoffs": [6, 20], "cluster_factor": 2.0}},
    ],
    ids=["lstm", "irnn", "np_rnn", "lstm with recurrent projection", "tied tables", "adaptive softmax"],
)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_scores_are_those_of_the_run_which_may_be_gone(tmp_path: Path, model: dict[str, object], precision: str, tolerance: float) -> None:
    made_tokens(tmp_path / "tokens")
    config = made_config(tmp_path, **model)
    made_checkpoint(config, 20)
    expected = nats(Path(config.run.directory))
    out = export_run(Path(config.run.directory), tmp_path / "elsewhere" / "model", precision=precision).path
    shutil.rmtree(config.run.directory)
    shutil.rmtree(tmp_path / "tokens")
    assert np.allclose(nats(out), expected, rtol=tolerance, atol=0)
    assert np.allclose(nats(out, precision="bf16"), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("checkpoint", ["latest", "10"])
def test_the_files_hold_the_checkpoints_own_numbers(run: Path, tmp_path: Path, weights: str, checkpoint: str) -> None:
    found = list_checkpoints(run)[0 if checkpoint == "10" else -1]
    done = export_run(run, tmp_path / "model", checkpoint=checkpoint, weights=weights)
    assert (done.facts["step"], done.facts["weights"]) == (found.step, weights)
    written = tensors(done.path)
    core = found.core("weights" if weights == "raw" else "ema")
    assert core is not None
    assert set(written) == {f"core.{name}" for name in core} | set(TABLES.values())
    for name, value in core.items():
        assert torch.equal(written[f"core.{name}"], value)
    for name, written_name in TABLES.items():
        table = found.read_table(name)
        assert torch.equal(written[written_name], table.flatten() if name == "output_bias" else table)


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_tables_of_many_ranks_are_put_in_order(run: Path, tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm1b.evaluation.trained.export.BLOCK_BYTES", 100 * ranks)  # a table is many blocks
    there = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(there / "checkpoints" / "step_00000010")
    recut(list_checkpoints(there)[0], ranks)
    written, expected = tensors(export_run(there, tmp_path / "cut").path), tensors(export_run(run, tmp_path / "whole").path)
    for name in expected:
        assert torch.equal(written[name], expected[name]), name


def recut(checkpoint: Checkpoint, ranks: int) -> None:
    """The same checkpoint as so many ranks would have written it."""
    files = checkpoint.manifest()
    for name in TABLES:
        keys = ("rows", "accumulators")
        parts = [{key: checkpoint.read_table(name, rank, ranks, key) for key in keys} for rank in range(ranks)]
        del files[table_file(name, 0, 1)]
        for rank, part in enumerate(parts):
            save_file(part, checkpoint.path / table_file(name, rank, ranks))
            files[table_file(name, rank, ranks)] = {}
    write_json(checkpoint.path / "state.json", {**read_json(checkpoint.path / "state.json"), "ranks": ranks})
    files = {name: {"bytes": (checkpoint.path / name).stat().st_size, "sha256": digest_of_file(checkpoint.path / name)} for name in files}
    write_sealed_json(checkpoint.path / "manifest.json", {**read_sealed_json(checkpoint.path / "manifest.json"), "files": files})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_over_the_limit_is_in_several_files(run: Path, tmp_path: Path, precision: str) -> None:
    limit = 800
    one = export_run(run, tmp_path / "one", precision=precision).path
    many = export_run(run, tmp_path / "many", precision=precision, largest_file_bytes=limit).path
    index = read_json(many / "model.safetensors.index.json")
    names = sorted({*index["weight_map"].values()})
    assert len(names) > 2
    assert names == [f"model-{number:05d}-of-{len(names):05d}.safetensors" for number in range(1, len(names) + 1)]
    assert not (many / "model.safetensors").exists()
    assert not (one / "model.safetensors.index.json").exists()
    for name in names:
        held = load_file(many / name)
        assert sorted(held) == sorted(tensor for tensor, file in index["weight_map"].items() if file == name)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors(one).values())
    assert {name: tensor.dtype for name, tensor in tensors(many).items()} == {
        name: torch.bfloat16 if precision == "bf16" and name != "output_table.bias" else torch.float32 for name in index["weight_map"]
    }
    assert np.array_equal(nats(many), nats(one))


def test_the_commands_take_an_exported_model(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "made"
    done = command("launch/export.py", "--run", run, "--out", out, "--checkpoint", "10", "--weights", "raw", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert f"{out}: step 10, raw weights, fp32" in done.stdout
    assert "have not been scored" in done.stdout
    chosen = ("--checkpoint", "10", "--weights", "raw")
    text = "\n".join(SENTENCES)
    for script, options in (("launch/score.py", ()), ("launch/sample.py", ("--prompt", "w1 w2", "--seed", "5", "--count", "3"))):
        of_run, of_export = (
            command(script, "--run", run, *chosen, *options, text=text),
            command(script, "--run", out, *options, text=text),
        )
        assert of_run.returncode == of_export.returncode == 0, of_export.stderr
        if script == "launch/score.py":
            pairs = zip(of_run.stdout.splitlines(), of_export.stdout.splitlines(), strict=True)
            assert all(json.loads(a)["nats"] == pytest.approx(json.loads(b)["nats"], rel=1e-6) for a, b in pairs)
        else:
            assert of_run.stdout == of_export.stdout != ""


def test_the_folder_that_one_is_in_may_be_named_if_empty(run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_run(run, Path("."))
    assert np.array_equal(nats(tmp_path / "here"), nats(whole))


def test_loading_needs_no_deepspeed_and_no_transformers(whole: Path) -> None:
    code = "import sys, lm1b; lm1b.load(sys.argv[1]).score(['w1']); sys.exit({'deepspeed', 'transformers'} & set(sys.modules) != set())"
    assert subprocess.run([sys.executable, "-c", code, str(whole)], cwd=REPOSITORY, env=environment()).returncode == 0


FILES = ["model.safetensors", "config.json", "vocabulary.txt", "generation_config.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.8, 1.0])
def test_a_flipped_bit_is_found(copy: Path, name: str, place: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(place * (len(data) - 3))] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        lm1b.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_file_is_named(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=name):
        lm1b.load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=name):
        lm1b.load(copy)


def test_the_model_card_may_be_finished_by_its_user(copy: Path, whole: Path) -> None:
    (copy / "README.md").write_text("license: mine")
    assert np.array_equal(nats(copy), nats(whole))


def test_the_card_has_this_checkpoints_perplexities_and_no_path(tmp_path: Path) -> None:
    tokens = made_tokens(tmp_path / "tokens")
    config = made_config(tmp_path)
    run = Path(config.run.directory)
    scored: list[Evaluation] = []
    for step in (10, 20):
        found = made_checkpoint(config, step)
        text = text_of_split(tokens, "validation")
        scored += evaluate_checkpoint(found, override_config(config, ["evaluation.weights=both"]).evaluation, text)
    of_20 = scored[-2]
    own = replace(of_20, split="files", files=[str(tmp_path / "mine.txt")], word_perplexity=7.25)
    looks = [replace(scored[0], split="test", look=look) for look in ("1", "1", "2")]
    for each in [replace(of_20, word_perplexity=1e9), *scored, own, *looks]:  # scored again: the newest line counts
        append_json_line(run / "evaluations.jsonl", seal(each.as_line()))
    done = export_run(run, tmp_path / "model")
    card = (done.path / "README.md").read_text()
    counts = f"| {own.predictions:,} | {100 * own.unknown / own.predictions:.2f} % |"
    assert [line for line in card.splitlines() if line.startswith("| ") and "perplexity" not in line] == [
        f"| files of the user | carry, 3 lanes | fp32 {counts} 7.25 (closed) |",
        f"| validation | carry, 3 lanes | fp32 {counts} {of_20.word_perplexity:.2f} (closed) |",
    ]
    facts = read_json(done.path / "config.json")["lm1b"]
    assert [line["word_perplexity"] for line in facts["evaluations"]] == [of_20.word_perplexity, 7.25]
    assert facts["vocabulary"]["fingerprint"] == tokens.fingerprint
    assert '"cell": "lstm"' in card
    assert "scored on test text 2 times" in card
    assert "500 sentences" in card
    for path in done.path.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_wrong_inputs_are_one_line_and_status_2(run: Path, whole: Path, tmp_path: Path) -> None:
    taken, foreign = tmp_path / "taken", tmp_path / "foreign"
    (taken / "thing").mkdir(parents=True)
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "gpt2"}')
    new = tmp_path / "new"
    for script, options, message in (
        ("export", ("--run", run, "--out", taken), "there is something already"),
        ("score", ("--run", whole, "--checkpoint", "10"), "is one checkpoint (step 20, ema weights)"),
        ("sample", ("--run", foreign), "not the config.json of a run"),
    ):
        done = command(f"launch/{script}.py", *options)
        assert done.returncode == 2, (script, options, done.stderr)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    for source, out, options, message in (
        (run, whole / "config.json", {}, "there is something already"),
        (tmp_path / "none", new, {}, "no run here"),
        (foreign, new, {}, "not the config.json of a run"),
        (whole, new, {}, "an exported model already"),
        (run, new, {"checkpoint": "15"}, "--checkpoint must be latest, best or a step that is there"),
        (run, new, {"checkpoint": "best"}, "nothing has been scored on validation"),
        (run, new, {"precision": "fp16"}, "precision must be one of fp32, bf16, found fp16"),
    ):
        with pytest.raises(UserError, match=message):
            export_run(source, out, **options)
    assert not new.exists()
    for options, message in (
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, found fp16"),
        ({"weights": "raw"}, "is one checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            lm1b.load(whole, **options)


@pytest.mark.parametrize(
    ("prepare", "status"),
    [
        ("signal.raise_signal(signal.SIGINT) if event == 'open' and str(given[0]).endswith('model.safetensors') else None", 130),
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)) if event == 'os.mkdir' and 'partial' in str(given[0]) else None", 2),
    ],
    ids=["Ctrl-C", "disk full"],
)
def test_an_export_that_is_cut_leaves_nothing(run: Path, tmp_path: Path, prepare: str, status: int) -> None:
    """Interrupted, or out of space, just when the tensors are being written."""
    code = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background processes are born without
        f"sys.addaudithook(lambda event, given: {prepare})\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = command("-c", code, "launch/export.py", "--run", run, "--out", tmp_path / "model")
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
