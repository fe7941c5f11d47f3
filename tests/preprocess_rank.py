"""launch/preprocess.py as a rank of which one is killed: `python preprocess_rank.py RANK NUMBER --config ...`.

That rank dies by SIGKILL before its rename with that number.
"""

from __future__ import annotations

import os
import runpy
import sys

from preprocess_worker import kill_before_rename
from tiny import REPOSITORY

if __name__ == "__main__":
    rank, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    if int(os.environ["RANK"]) == rank:
        kill_before_rename(number)
    runpy.run_path(str(REPOSITORY / "launch" / "preprocess.py"), run_name="__main__")
