"""One rank that tries each check of same_everywhere.py, on what its JSON argument gives it; prints how each ended.

python same_everywhere_worker.py '{"config": FILE, "tokens": FOLDER, "run": FOLDER}'
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lm1b.config import load_config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.distributed import agree, share_of_cores
from lm1b.errors import UserError
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.run_state import RunLock
from lm1b.training.same_everywhere import check_program, check_run_folder, check_tokens


def outcome(check: Callable[[], object]) -> object:
    """What a check returned, or its UserError's text."""
    try:
        return check()
    except UserError as error:
        return str(error)


def main() -> None:
    given = json.loads(sys.argv[1])
    config, tokens, run = load_config(given["config"], []), TokenDirectory.open(Path(given["tokens"])), Path(given["run"])
    ranks = start_ranks()
    lock = agree(ranks, lambda: RunLock(run) if ranks.is_first else None)
    started_at = time.perf_counter()
    said = {"program": outcome(lambda: check_program(ranks, config)), "tokens": outcome(lambda: check_tokens(ranks, tokens))}
    said["seconds"] = time.perf_counter() - started_at
    said["run folder"] = outcome(lambda: check_run_folder(ranks, run))
    said["cores"] = share_of_cores(ranks)
    if lock:
        lock.release()
    stop_ranks()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
