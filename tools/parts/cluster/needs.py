"""What this machine must have for a cluster in a box, said in one line where it has not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from lm1b.errors import UserError

PROGRAMS = {  # program: Debian's package
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
}


def find_program(name: str) -> str | None:
    """Its path, also where the administrator's programs are not on PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))


def what_is_missing() -> str | None:
    """One sentence on what a cluster in a box needs and is not there, or None."""
    if os.name != "posix" or not Path("/proc/self/ns/net").exists():
        return "a cluster in a box needs Linux with its namespaces"
    if os.geteuid() != 0:
        return "a cluster in a box needs root, for namespaces, mounts and network links of its own"
    missing = [name for name in PROGRAMS if find_program(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PROGRAMS[name] for name in missing))
        return f"a cluster in a box needs {', '.join(missing)}: apt-get install {packages}"
    trial = [str(find_program("unshare")), "--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"]
    done = subprocess.run(trial, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:  # root in a container that may not
        return f"a cluster in a box needs all rights of root ({' '.join(done.stderr.split())})"
    return None


def check_needs() -> None:
    """Raises UserError where something is missing."""
    problem = what_is_missing()
    if problem:
        raise UserError(problem)
