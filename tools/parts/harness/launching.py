"""Where the repository is, and how a tool starts ranks of it on this machine."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))  # beside this Python, whatever PATH says


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ranks_command(ranks: int, script: Path | str, *arguments: str) -> list[str]:
    """DeepSpeed's launcher on a port of its own, with so many ranks of this machine."""
    return [DEEPSPEED, "--num_gpus", str(ranks), "--master_port", str(free_port()), str(script), *arguments]
