"""The commands of lm1b/data/README.md for data that is not on the machine, in their order, against an S3-compatible server on loopback."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
from documents import commands_of, section
from loopback_store import in_environment, proxy_to, s3_server
from tiny import REPOSITORY, environment, free_port, write_corpus, write_settings

from lm1b.files import read_json_lines

DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


def commands() -> list[str]:
    """Of the section, without the installation."""
    return [line for line in commands_of(section("Data that is not on the machine")) if not line.startswith("pip ")]


def test_the_readmes_commands_and_a_fresh_host(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    config = write_settings(tmp_path, "run", training={"total_steps": 30})
    with s3_server(tmp_path) as port, proxy_to(port) as proxy:
        home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        with in_environment(proxy.environment):
            fsspec.filesystem("s3").clear_instance_cache()
            fsspec.filesystem("s3").mkdir("lm1b-tests")

        def run(line: str) -> str:
            line = re.sub(r"configs/\w+\.json", str(config), line).replace("BUCKET", "lm1b-tests")
            line = re.sub(r"\bruns/\w+", str(tmp_path / "run"), line).replace("data/tokens_lm1b", str(tmp_path / "tokens"))
            program, *rest = shlex.split(line)
            arguments = [sys.executable, *rest] if program == "python" else [DEEPSPEED, "--master_port", str(free_port()), *rest]
            done = subprocess.run(
                arguments, env=environment(**proxy.environment, **home), capture_output=True, text=True, timeout=240, cwd=REPOSITORY
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert not [warning for warning in done.stderr.splitlines() if "Warning:" in warning and "/lm1b/" in warning]
            return done.stdout

        preprocess, copy, train, evaluate = commands()
        run(preprocess)
        run(copy)
        shutil.rmtree(tmp_path / "tokens")  # from here on this is another machine
        shutil.rmtree(tmp_path / "corpus")
        assert "mirrored in s3://lm1b-tests/irnn_lm" in run(train)
        assert "step 30: word perplexity" in run(evaluate)
        losses = read_json_lines(tmp_path / "run" / "metrics.jsonl")
        shutil.rmtree(tmp_path / "run")  # and this one a third
        shutil.rmtree(tmp_path / "cache")
        said = run(train)
        assert "fetched the checkpoint of step 30" in said
        assert "finished at step 30 of 30" in said
        assert read_json_lines(tmp_path / "run" / "metrics.jsonl") == losses
