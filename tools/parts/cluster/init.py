"""The first process of the box and of every host in it: sets it up, then reaps orphans until its standard input is closed.

It is process 1 of a PID namespace: when it ends, the kernel ends all others there, and with the last of them go the network
and the mounts. Its standard input is a pipe from the tool, so that it ends with the tool, however that ends. What to set up is
one line of JSON on that pipe; the answer is one line on standard output. Standard library only: it runs without the package.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

KEYS = Path("/run/cluster")  # in the box: made once, copied by every host before its own /run hides them
PRIVATE = ("/tmp", "/var/tmp", "/run", "/dev/shm")
REAP_SECONDS = 0.5


def run(*command: str, **options: Any) -> None:
    """Run a command; raises CalledProcessError with what it said."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)


def set_up_box(spec: dict[str, Any]) -> None:
    """A switch that the hosts are plugged into, one key for their user and one for each host's ssh server."""
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    KEYS.mkdir(mode=0o700)
    for name in ("user", *(host["name"] for host in spec["hosts"])):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(KEYS / name))
    run("ip", "link", "add", "name", spec["bridge"], "type", "bridge")
    run("ip", "link", "set", spec["bridge"], "up")


def set_up_host(spec: dict[str, Any]) -> None:
    """A host's name and files: nothing can be written but its own tmpfs folders and the one shared folder."""
    socket.sethostname(spec["name"])
    keys = {path.name: path.read_bytes() for path in KEYS.iterdir()}
    kept = {path: os.open(path, os.O_PATH) for path in spec["kept"]}  # as they are now, before anything is hidden
    for mounted in _writable_mounts():
        run("mount", "-o", "remount,bind,ro", mounted)
    for folder in (*PRIVATE, spec["home"]):
        run("mount", "-t", "tmpfs", "-o", "mode=0700" if folder == spec["home"] else "mode=1777", "tmpfs", folder)
    run("mount", "-t", "sysfs", "sysfs", "/sys")  # else it shows the interfaces of another network
    for path, descriptor in sorted(kept.items()):
        _show(path, descriptor)
    _show(spec["workplace"], kept[spec["workplace"]], always=True)
    run("mount", "-o", "remount,bind,rw", spec["workplace"])
    run("mount", "-t", "proc", "proc", "/proc")
    Path("/run/hosts").write_text(spec["names"])
    run("mount", "--bind", "/run/hosts", "/etc/hosts")
    _unlock_root()
    _write_ssh(Path(spec["home"]) / ".ssh", spec, keys)
    for name, text in spec["files"].items():
        (Path(spec["home"]) / name).write_text(text)


def _writable_mounts() -> list[str]:
    """Where file systems other than the kernel's own are mounted for writing."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        place = fields[4].encode().decode("unicode_escape")
        if "rw" in fields[5].split(",") and not any(place == top or place.startswith(f"{top}/") for top in ("/proc", "/sys", "/dev")):
            found.append(place)
    return list(dict.fromkeys(found))


def _show(path: str, descriptor: int, always: bool = False) -> None:
    """Have a folder that a tmpfs may have hidden at its place again."""
    there = Path(path)
    if not always and there.exists() and os.path.samestat(there.stat(), os.fstat(descriptor)):
        return
    there.mkdir(parents=True, exist_ok=True)
    run("mount", "-c", "--bind", f"/proc/self/fd/{descriptor}", path, pass_fds=(descriptor,))


def _unlock_root() -> None:
    """Where root has no password at all its account is locked, and sshd lets nobody in by a key either: not so on the host."""
    shadow = Path("/etc/shadow")
    text = shadow.read_text() if shadow.exists() else ""
    unlocked = re.sub(r"^root:!.*?:", "root:*:", text, flags=re.MULTILINE)
    if unlocked != text:
        private = Path("/run/shadow")
        private.touch(mode=0o600)
        private.write_text(unlocked)
        run("mount", "--bind", str(private), str(shadow))


def _write_ssh(folder: Path, spec: dict[str, Any], keys: dict[str, bytes]) -> None:
    """Client and server of ssh as an administrator of a cluster would set them up: every host knows every other."""
    folder.mkdir(mode=0o700)
    known = "".join(f"{host['name']},{host['address']} {keys[host['name'] + '.pub'].decode()}" for host in spec["hosts"])
    server = (
        f"ListenAddress {spec['address']}\nHostKey /run/sshd/host_key\nPidFile none\nUsePAM no\nUseDNS no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nAuthorizedKeysFile .ssh/authorized_keys\nPrintLastLog no\nMaxStartups 100\nMaxSessions 100\n"
        "ClientAliveInterval 2\nClientAliveCountMax 3\n"
    )
    client = "StrictHostKeyChecking yes\nServerAliveInterval 2\nServerAliveCountMax 3\nConnectTimeout 10\nLogLevel ERROR\n"
    Path("/run/sshd").mkdir(mode=0o755)
    for path, content in {
        folder / "id_ed25519": keys["user"],
        folder / "authorized_keys": keys["user.pub"],
        folder / "known_hosts": known.encode(),
        folder / "config": client.encode(),
        Path("/run/sshd/host_key"): keys[spec["name"]],
        Path("/run/sshd/config"): server.encode(),
    }.items():
        path.touch(mode=0o600)
        path.write_bytes(content)


def wait_for_the_end() -> None:
    """Until the tool closes the pipe or is gone."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if select.select([0], [], [], REAP_SECONDS)[0] and not os.read(0, 4096):
            return


def main() -> None:
    spec = json.loads(sys.stdin.buffer.readline())
    answer = {"pid": int(os.readlink("/proc/self"))}  # /proc is still the outer one: this is the id that the tool knows us by
    try:
        (set_up_box if spec["role"] == "box" else set_up_host)(spec)
    except subprocess.CalledProcessError as error:
        answer = {"error": f"{' '.join(map(str, error.cmd))}: {error.stderr or error}"}
    except OSError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    if "pid" in answer:
        wait_for_the_end()


if __name__ == "__main__":
    assert os.getpid() == 1, "the first process of a namespace"
    main()
