"""Every command of the READMEs that is one of tools/, run as it stands there with a tiny run's paths put in; several hosts apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from readme_commands import README_COMMANDS, is_of_tools, run_as_printed


@pytest.mark.parametrize("line", [line for line in README_COMMANDS if is_of_tools(line)], ids=str)
def test_a_command_of_the_readme(readme_folder: Path, readme_exported: Path, tmp_path: Path, line: str) -> None:
    run_as_printed(line, readme_folder, readme_exported, tmp_path)
