"""An sshd of the tests' own: on loopback, a free port, with its own keys, and an `ssh` that knows them first on PATH."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import free_port

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
MISSING = [name for name in ("ssh", "ssh-keygen", "pdsh") if shutil.which(name) is None] + ([] if SSHD else ["sshd"])
needs_ssh = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0, reason=f"needs root, openssh-server and pdsh from Debian (missing: {', '.join(MISSING) or 'root'})"
)


@dataclass(frozen=True)
class SshServer:
    """Every address 127.x.y.z is a host of it; `programs` holds the client, to be put first on PATH."""

    port: int
    programs: Path

    def path(self) -> str:
        return f"{self.programs}:{os.environ['PATH']}"


@contextlib.contextmanager
def ssh_server(folder: Path, elsewhere: tuple[Path, Path] | None = None) -> Generator[SshServer]:
    """Run one, with its files in `folder`. elsewhere: a path that leads to another one on the host 127.0.0.2."""
    assert SSHD
    port, programs = free_port(), folder / "programs"
    programs.mkdir(parents=True)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized")
    settings = {
        "Port": port,
        "ListenAddress": "0.0.0.0",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "yes",
        "PidFile": "none",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if elsewhere:
        command = f"printf %s \"$SSH_ORIGINAL_COMMAND\" | sed 's,{elsewhere[0]},{elsewhere[1]},g'"
        with open(folder / "sshd_config", "a") as file:
            file.write(f'Match LocalAddress 127.0.0.2\n  ForceCommand /bin/sh -c "$({command})"\n')
    client = {"IdentityFile": folder / "user_key", "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR"}
    (folder / "ssh_config").write_text("".join(f"{name} {value}\n" for name, value in {**client, "User": getpass.getuser()}.items()))
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    (programs / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)  # it insists on this empty folder
    with open(folder / "sshd.log", "w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        else:
            pytest.fail((folder / "sshd.log").read_text())
        yield SshServer(port, programs)
    finally:
        server.terminate()
        server.wait(10)
