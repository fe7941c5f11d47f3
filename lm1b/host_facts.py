"""What a host would run: versions of what matters and a digest of this package's source.

Standard library alone, and one file: tools/check_hosts.py sends it to hosts, where it may be all that there is, and runs it as a program.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "safetensors", "pydantic")
MISSING = "missing"
CONNECT_SECONDS = 5.0


def package_folder() -> Path | None:
    """Where Python would import lm1b from."""
    spec = importlib.util.find_spec("lm1b")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def source_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every Python file of a package, by its path in it."""
    files = sorted(path for path in folder.rglob("*.py"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def program_facts() -> dict[str, str]:
    """Python's and the packages' versions, and `lm1b`, the digest of its source (12 digits)."""
    facts = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = MISSING
    folder = package_folder()
    text = json.dumps(source_digests(folder), sort_keys=True) if folder else ""
    facts["lm1b"] = hashlib.sha256(text.encode()).hexdigest()[:12] if folder else MISSING
    return facts


def _addresses() -> list[str]:
    """This host's own, the launcher's choice first."""
    try:
        return subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=5, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def _own_address() -> str | None:
    """What this host's name stands for: gloo's choice where GLOO_SOCKET_IFNAME says nothing."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def host_facts() -> dict[str, Any]:
    """More that can keep hosts from working together: clock (seconds since 1970), /dev/shm (bytes free), network."""
    return {
        "host": socket.gethostname(),
        "time": time.time(),
        "shared_memory": shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0,
        "addresses": _addresses(),
        "own_address": _own_address(),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "program": program_facts(),
    }


def listen(port: int, num_connections: int, seconds: float) -> None:
    """Say that `port` is open, and take so many connections, for so long at most. Raises OSError where the port is taken."""
    with socket.create_server(("", port)) as listener:
        print(json.dumps({"listening": listener.getsockname()[1]}), flush=True)
        give_up_at = time.monotonic() + seconds
        for _ in range(num_connections):
            listener.settimeout(max(0.01, give_up_at - time.monotonic()))
            try:
                listener.accept()[0].close()
            except TimeoutError:
                return


def try_connection(address: str, port: int) -> str | None:
    """Why a port cannot be reached from here; None where it can."""
    try:
        socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return _in_words(error)
    return None


def _in_words(error: OSError) -> str:
    """Without what Python adds to the system's own words."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


def main(arguments: list[str]) -> None:
    """`facts`, `listen PORT CONNECTIONS SECONDS` or `connect ADDRESS PORT`; prints one JSON object."""
    if arguments[0] == "listen":
        try:
            listen(int(arguments[1]), int(arguments[2]), float(arguments[3]))
        except OSError as error:
            print(json.dumps({"problem": _in_words(error)}), flush=True)
    elif arguments[0] == "connect":
        print(json.dumps({"problem": try_connection(arguments[1], int(arguments[2]))}))
    else:
        print(json.dumps(host_facts()))


if __name__ == "__main__":
    main(sys.argv[1:])
