"""From the command to the first step: a training started, ended with a checkpoint, and resumed, tables of the real size. Wall seconds.

The real thing, `deepspeed launch/train.py`, on a vocabulary of made-up words and a text that uses few of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from lm1b.errors import UserError
from lm1b.training.run_folder import RunFolder
from parts.harness.launching import REPOSITORY, ranks_command


def measure_resume(vocabulary: int, folder: Path | None = None) -> dict[str, Any]:
    """Seconds to the first step of a new run and of a resumed one (verification included), of the new one to its end; its size."""
    with tempfile.TemporaryDirectory(prefix="lm1b-resume-", dir=folder) as name:
        place = Path(name)
        words = [f"w{number}" for number in range(vocabulary - 3)]
        (place / "words.txt").write_text("\n".join(["</S>", "<UNK>", *words]) + "\n")
        text = "".join(" ".join(words[(line * 7 + i) % 5000] for i in range(20)) + "\n" for line in range(2000))
        for split in ("train", "validation"):
            (place / f"{split}.txt").write_text(text)
        settings = [
            f"run.directory={place}/run",
            "corpus.kind=text",
            "corpus.path=null",
            "corpus.tokenized=true",
            f'corpus.train=["{place}/train.txt"]',
            f'corpus.validation=["{place}/validation.txt"]',
            f"vocabulary.file={place}/words.txt",
            f"tokens.directory={place}/tokens",
            "training.epochs=null",
            "training.log_every=1",
            "training.evaluate_alongside=false",
            "training.gap_every=null",
        ]
        _run([sys.executable, "launch/preprocess.py"], [*settings, "training.total_steps=2"])
        figures = {"vocabulary": vocabulary, "ranks": 1}
        metrics = RunFolder(place / "run").metrics
        first, whole = _run(ranks_command(1, "launch/train.py"), [*settings, "training.total_steps=2"], metrics, 1)
        figures |= {"start_to_first_step_seconds": round(first, 1), "start_whole_seconds": round(whole, 1)}
        # Ended after its first step: a second checkpoint as large would tell nothing new.
        first, _ = _run(ranks_command(1, "launch/train.py"), [*settings, "training.total_steps=1000"], metrics, 3, ends_there=True)
        figures["resume_to_first_step_seconds"] = round(first, 1)
        checkpoints = sorted(RunFolder(place / "run").checkpoints.glob("step_*"))
        figures["checkpoint_mb"] = round(sum(file.stat().st_size for file in checkpoints[-1].iterdir()) / 1e6)
        return figures


def _run(
    command: list[str], settings: list[str], metrics: Path | None = None, step: int = 0, *, ends_there: bool = False
) -> tuple[float, float]:
    """-> seconds until `step` was in the metrics, and until the end. Raises UserError where it fails.

    ends_there: kill it as soon as the step is there.
    """
    options = [option for setting in settings for option in ("--set", setting)]
    with tempfile.TemporaryFile() as log:
        started_at = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--config", "configs/lstm_lm.json", *options], cwd=REPOSITORY, stdout=log, stderr=log, env=dict(os.environ)
        )
        first = 0.0
        while process.poll() is None:
            if not first and metrics and metrics.exists() and _has(metrics, step):
                first = time.perf_counter() - started_at
                if ends_there:
                    kill_family(process)
                    return first, first
            time.sleep(0.05)
        whole = time.perf_counter() - started_at
        if process.returncode:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise UserError(f"{command[-1]} has failed (status {process.returncode}): {said[-1]}")
    return first or whole, whole


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """The launcher and everything that it has started."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)


def _has(metrics: Path, step: int) -> bool:
    return any(json.loads(line)["step"] >= step for line in metrics.read_text().splitlines() if line.endswith("}"))
