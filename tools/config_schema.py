"""The JSON schemas of the configs, for editors that complete and check them.

    python tools/config_schema.py

Writes configs/schema.json (language models) and configs/task_schema.json (the papers' tasks). A test keeps them equal to the models.
In Visual Studio Code: "json.schemas": [{"fileMatch": ["configs/*.json"], "url": "./configs/schema.json"}].
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lm1b.config import Config
from lm1b.errors import run_command
from lm1b.files import write_json
from lm1b.sequence_tasks.config import TaskExperiment

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SCHEMAS = {CONFIGS / "schema.json": Config, CONFIGS / "task_schema.json": TaskExperiment}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path, model in SCHEMAS.items():
        write_json(path, model.model_json_schema())
        print(path)


if __name__ == "__main__":
    run_command(main)
