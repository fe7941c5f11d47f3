"""The house's layers: a module imports only from its own layer or one below, and nothing reads pickles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tiny import REPOSITORY

# Inside a layer, in the order in which the data flows: a module imports only from its own folder or one before.
ORDER = {
    "data": ["crew", "receipts", "text", "vocabulary", "tokens", "batches", "preprocess"],
    "training": [
        *("timing", "engine", "step", "evaluations", "run_folder", "checkpoints", "run_state", "same_everywhere", "resume", "stopping"),
        *("run", "log", "dry_run", "loop"),
    ],
    "evaluation": ["trained", "scoring", "report"],
    "sequence_tasks": ["config", "data", "experiment", "dynamics", "papers"],
}
LAYERS = ["base", "config", "data", "model", "training", "evaluation", "sequence_tasks", "launch"]
FILES = sorted([*REPOSITORY.glob("lm1b/**/*.py"), *REPOSITORY.glob("launch/*.py")])


def layer_of(module: str) -> int:
    """Height of `lm1b.data.batches` and the like."""
    parts = module.split(".")
    if parts[0] == "launch" or module in ("lm1b.__init__", "lm1b.huggingface"):  # the front doors
        return LAYERS.index("launch")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else 0


def imports_of(path: Path) -> list[str]:
    """Names of the modules a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    own = layer_of(module_name(path))
    upward = [name for name in imports_of(path) if name.split(".")[0] in ("lm1b", "launch") and layer_of(name) > own]
    assert not upward, f"{module_name(path)} imports upward: {upward}"


@pytest.mark.parametrize("layer", ORDER)
def test_imports_inside_a_layer_go_down(layer: str) -> None:
    """A module of a layer, or of a folder in it, imports from its own folder or one that stands before it."""
    order = ORDER[layer]
    for path in sorted((REPOSITORY / "lm1b" / layer).glob("**/*.py")):
        own, *_ = path.relative_to(REPOSITORY / "lm1b" / layer).with_suffix("").parts
        used = {name.split(".")[2] for name in imports_of(path) if name.startswith(f"lm1b.{layer}.") and name.count(".") > 1}
        upward = {name for name in used if name in order and own in order and order.index(name) > order.index(own)}
        assert not upward, f"{module_name(path)} imports upward: {upward}"
        assert own in order or own == "__init__", f"{own}: where does it stand in {layer}/?"


def test_three_files_know_deepspeed() -> None:
    users = [module_name(path) for path in FILES if any(name.split(".")[0] == "deepspeed" for name in imports_of(path))]
    assert users == [f"lm1b.training.engine.{name}" for name in ("engine", "process_group", "settings")]


def test_the_config_needs_no_torch() -> None:
    for path in [*(REPOSITORY / "lm1b" / "config").glob("*.py"), *(REPOSITORY / "lm1b" / f"{name}.py" for name in ("errors", "files"))]:
        assert "torch" not in {module.split(".")[0] for module in imports_of(path)}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_runs_code_from_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "pickle.load", "pickle.loads", "os.system"), called
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg not in ("allow_pickle", "shell") or is_false, ast.unparse(node)


FOLDERS = sorted([*REPOSITORY.glob("lm1b/**/__init__.py"), *REPOSITORY.glob("tools/parts/**/__init__.py")])


@pytest.mark.parametrize("init", FOLDERS, ids=module_name)
def test_a_folder_s_docstring_names_all_that_is_in_it_once(init: Path) -> None:
    told = re.findall(r"^(?:\d\.)? *(\w+(?:\.py|/)) {2,}\S", ast.get_docstring(ast.parse(init.read_text())) or "", re.MULTILINE)
    folders = [f"{path.parent.name}/" for path in init.parent.glob("*/__init__.py")]
    assert sorted(told) == sorted([*folders, *(path.name for path in init.parent.glob("*.py") if path != init)])


# A tool and its parts import from their own folder and from the harness. Beside that: what should be on the wire, the scaling model knows.
TOOLS_BESIDE = {("cluster", "scaling_model")}


def test_different_tools_share_by_the_harness() -> None:
    parts = {path: path.parent.name for path in REPOSITORY.glob("tools/parts/*/*.py")}
    for path, own in {**parts, **{path: path.stem for path in REPOSITORY.glob("tools/*.py")}}.items():
        used = {name.split(".")[1] for name in imports_of(path) if name.startswith("parts.")}
        assert used - {own, "harness"} <= {folder for tool, folder in TOOLS_BESIDE if tool == own}, module_name(path)


def test_the_list_of_tools_names_every_command_once() -> None:
    folder = REPOSITORY / "tools"
    told = re.findall(r"^\| `(\S+?)[` ]", (folder / "README.md").read_text(), re.MULTILINE)
    commands = [path.name for path in folder.iterdir() if path.suffix in (".py", ".sh")]
    assert sorted(set(told)) == sorted([*commands, "slurm/train.sbatch"])
