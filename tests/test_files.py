"""Files that are read while somebody else writes them."""

from __future__ import annotations

import os
from pathlib import Path

from lm1b.files import read_json_lines


def test_a_line_that_is_being_written_is_no_line_yet() -> None:
    """A writer's line may become visible in two parts, cut at a page of the file: found by the fault rig."""
    # A terminal shows a reader the file's end (the second \x04) between two parts of a line every time, a disk once in a while.
    writer, reader = os.openpty()
    try:
        os.write(writer, b'{"step": 1}\n{\x04\x04"step": 2}\n\x04')
        assert read_json_lines(Path(os.ttyname(reader))) == [{"step": 1}]
    finally:
        os.close(writer)
        os.close(reader)
