"""The report's page in a real browser: it is whole, it is text where it should be, and nothing in it runs or is fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import made_checkpoint, made_config, made_tokens

from lm1b.config import override_config
from lm1b.evaluation.report.records import RunRecord
from lm1b.evaluation.report.report import report
from lm1b.evaluation.report.settings import commands_to_repeat, environment_rows, settings_rows
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.files import append_json_line, write_json
from lm1b.markdown import literal

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>document.title='run'<$script>$x^2$![a](http:__127.0.0.1:9_b)*b*_c_"  # a folder's name, so without slashes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two scored runs; the name of one is a script, a formula and a picture from elsewhere."""
    folder = tmp_path_factory.mktemp("page")
    made_tokens(folder / "tokens")
    found = []
    for name, hidden in (("plain", 6), (HOSTILE, 8)):
        config = override_config(made_config(folder), [f"run.directory={folder / name}", f"model.hidden={hidden}"])
        directory = Path(config.run.directory)
        Evaluator(directory, config).score(made_checkpoint(config, 10))
        for step in range(1, 31):
            line = {"step": step, "nats_per_word": 6.0 - step / 20, "words": step * 20, "elapsed_seconds": step / 2, "gradient_norm": 1.0}
            append_json_line(directory / "metrics.jsonl", line | {"words_per_second": 40.0 + step})
        facts = {"command": ["/elsewhere/launch/train.py", "--local_rank=0", "--config", f"{name}.json", "--log-format", "json"]}
        write_json(directory / "environment.json", facts | {"git_revision": "0" * 40, "ranks": 2, "versions": {"torch": "2.13.0"}})
        found.append(directory)
    return found


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    report(runs, out)
    return out / "report.html"


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_and_runs_nothing(page: Path) -> None:
    found = Page(page.read_text())
    names = [tag for tag, _ in found.tags]
    assert not {"script", "img", "iframe", "link", "object", "image"} & set(names)
    for _, attributes in found.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset")
            assert name not in ("href", "xlink:href") or str(value).startswith("#"), value
    assert names.count("svg") >= 8
    identities = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(identities) == len(set(identities))
    assert HOSTILE in found.text
    headings = ("Perplexity", "Published figures", "Where the nats go", "Settings side by side", "Environment", "How to repeat it")
    assert all(heading in found.text for heading in headings)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: chromium)")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_whole(page: Path, tmp_path: Path, width: int) -> None:
    # A window may not be as narrow as a phone: the page is put into a frame that is.
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"<iframe id=f src='{page.as_uri()}' style='width:{width}px;height:900px;border:0'></iframe><pre id=out></pre><script>"
        "f.onload = () => { const d = f.contentDocument, w = f.clientWidth;"
        "const wide = [...d.querySelectorAll('h1,h2,p,figure,svg,pre')].filter(e => e.getBoundingClientRect().right > w + 1);"
        "out.textContent = JSON.stringify([d.title, d.querySelectorAll('svg').length, d.querySelectorAll('table').length,"
        "d.documentElement.scrollWidth > w + 1, wide.map(e => e.outerHTML.slice(0, 80)), d.querySelectorAll('script').length]); }</script>"
    )
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *options, profile, "--virtual-time-budget=10000", "--dump-dom", "--window-size=1400,1000", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r"<pre id=\"out\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    assert f'"Report: plain, {HOSTILE}"' in found[1].replace("&lt;", "<").replace("&gt;", ">")
    assert re.search(r",\d\d?,\d\d?,false,\[\],0\]$", found[1]), found[1][-600:]


def test_markdown_shows_names_as_they_are() -> None:
    assert literal("a_b <i> *x* [y](z) `c`\n# d") == r"a_b \<i\> \*x\* \[y\](z) \`c\` \# d"
    assert literal("_a_") == r"\_a\_"
    assert literal("\\") == "\\\\"


def test_settings_are_those_that_differ_and_commands_are_those_that_were_given(runs: list[Path]) -> None:
    records = [RunRecord.read(run) for run in runs]
    assert settings_rows(records) == [["model.hidden", "6", "8"]]
    alone = {row[0]: row[1:] for row in settings_rows(records[:1])}
    assert alone["batches.lanes"] == ["4", "128"]
    assert "softmax.samples" not in alone
    assert ["revision", "000000000000", "000000000000"] in environment_rows(records)
    commands = commands_to_repeat(records[0])
    assert commands[:3] == [
        f"git checkout {'0' * 40}",
        "python launch/preprocess.py --config plain.json --log-format json",
        "deepspeed --num_gpus 2 launch/train.py --config plain.json --log-format json",
    ]
    assert "'" in commands_to_repeat(records[1])[1]  # quoted: nothing that a shell would do something with
