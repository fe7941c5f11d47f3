"""Runs Python commands in forks of one process that has imported torch and DeepSpeed: `fork_server.py SOCKET`. See forked.py.

A request is one connection: {"script", "arguments", "environment", "folder"} as one line of JSON, with stdin, stdout and stderr as
file descriptors. The answers are the fork's process id, and its exit status once it has ended. The server ends with its own stdin.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import socket
import sys
from pathlib import Path
from typing import Any

import lm1b

# What a training process would import otherwise, six seconds of processor time each.
SLOW_IMPORTS = (
    *("torch", "deepspeed.ops", "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.module_inject.auto_ep_layer"),
    *("torch._dynamo", "torch.distributed.nn", "pandas"),
)
# They need what is not installed everywhere, or read variables as they are imported.
LEFT_OUT = ("lm1b.huggingface", "lm1b.model.triton_kernels", "lm1b.data.text.rows")


def import_everything() -> None:
    """All of it but what a command's own environment decides about."""
    # torch._dynamo and DeepSpeed would import Triton for what nobody does here, and Triton complains at the end of a process whose garbage
    # is frozen.
    sys.modules["triton"] = None  # type: ignore[assignment]
    with contextlib.redirect_stdout(io.StringIO()):
        for name in SLOW_IMPORTS:
            importlib.import_module(name)
        _ = importlib.import_module("deepspeed.ops").__compatible_ops__  # probes the compiler
    del sys.modules["triton"]
    for module in pkgutil.walk_packages(lm1b.__path__, "lm1b."):
        if module.name not in LEFT_OUT:
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage several times a start: leave out all these modules


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Turn this fork into the process that was asked for, up to its first line."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    at_once = 1 if request["environment"].get("PYTHONUNBUFFERED") else -1
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", buffering=at_once, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    script = request["script"]
    first = "" if script == "-c" else str(Path(script).resolve().parent)
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[0:1] = [first, *more]
    sys.argv = [script, *request["arguments"]]


def serve(path: str) -> str | None:
    """Fork for each request until stdin ends. Comes back in the forks, with the script to run; None in the server itself."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        os.rename(f"{path}.new", path)  # whoever waits for the name finds somebody who listens
        running: dict[int, tuple[int, socket.socket]] = {}  # descriptor that tells of the end -> process, whom to tell
        while True:
            ready, _, _ = select.select([0, listener, *running], [], [])
            for descriptor in running.keys() & set(ready):
                pid, asker = running.pop(descriptor)
                os.close(descriptor)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(OSError), asker:
                    asker.sendall(f"{status}\n".encode())
            if 0 in ready:
                return None
            if listener not in ready:
                continue
            asker, _ = listener.accept()
            head, descriptors, _, _ = socket.recv_fds(asker, 1 << 20, 3)
            while not head.endswith(b"\n"):
                head += asker.recv(1 << 20)
            request = json.loads(head)
            pid = os.fork()
            if not pid:
                asker.close()
                for descriptor, (_, other) in running.items():
                    os.close(descriptor)
                    other.close()
                break
            for descriptor in descriptors:
                os.close(descriptor)
            running[os.pidfd_open(pid)] = pid, asker
            asker.sendall(f"{pid}\n".encode())
    become(request, descriptors)
    return request["script"]


if __name__ == "__main__":
    import_everything()
    asked_for = serve(sys.argv[1])
    if asked_for is not None:
        if asked_for == "-c":
            exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(asked_for, run_name="__main__")
