"""The commands of lm1b/data/README.md for data that is not on the machine, in their order, against an S3-compatible server on loopback."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
from documents import commands_of, section
from loopback_store import in_environment, proxy_to, s3_server
from readme_commands import put_in, run_line
from tiny import write_corpus, write_settings

from lm1b.files import read_json_lines


def commands() -> list[str]:
    """Of the section, without the installation."""
    return [line for line in commands_of(section("Data that is not on the machine")) if not line.startswith("pip ")]


def test_the_readmes_commands_and_a_fresh_host(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    write_settings(tmp_path, "run", training={"total_steps": 30})
    with s3_server(tmp_path) as port, proxy_to(port) as proxy:
        home = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        with in_environment(proxy.environment):
            fsspec.filesystem("s3").clear_instance_cache()
            fsspec.filesystem("s3").mkdir("lm1b-tests")

        def run(line: str) -> str:
            line = put_in(line.replace("BUCKET", "lm1b-tests").replace("data/tokens_lm1b", str(tmp_path / "tokens")), tmp_path)
            return run_line(line, **proxy.environment, **home).stdout

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
