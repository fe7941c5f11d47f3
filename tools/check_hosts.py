"""Are these hosts ready to train together? Run it where you would run deepspeed, in the same folder:

    python tools/check_hosts.py --hostfile hostfile [--ssh_port 2222] [--master_addr 10.0.0.1] [--master_port 29500]

Looks for pdsh and ssh, reads the hostfile as DeepSpeed does, and asks every host over ssh: versions and source of what it would run, clock,
/dev/shm, and whether it reaches the port where the ranks meet. Prints a table and one line for each problem. Exit status: 0 ready, 2 not.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from parts.check_hosts.remote import Remote, Unreachable, listening

from lm1b.errors import UserError, run_command
from lm1b.launchers import TORCH_PORT

LARGEST_SKEW_SECONDS = 30.0
LEAST_SHARED_MEMORY = 128 << 20  # NCCL's ranks of a host talk through it; containers often have 64 MB
SHOWN = ("python", "torch", "deepspeed", "lm1b")
AT_ONCE = 32
LISTEN_SECONDS = 20.0  # the port is free again then, whatever has become of who wanted to reach it


class Finding(NamedTuple):
    """One line for the user. A note keeps nobody from training."""

    host: str
    text: str
    is_note: bool = False


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hostfile", required=True, help="the launcher's: a line `HOST slots=RANKS` each")
    parser.add_argument("--ssh_port", type=int, help="as for deepspeed")
    parser.add_argument("--master_addr", help="as for deepspeed; by default the first host's first address")
    parser.add_argument("--master_port", type=int, default=TORCH_PORT, help="as for deepspeed (default %(default)s)")
    return parser.parse_args()


def read_hostfile(path: str) -> dict[str, int]:
    """Host -> ranks, as the launcher reads it. Raises UserError."""
    logging.disable(logging.ERROR)  # it prints the whole file before it raises
    from deepspeed.launcher.runner import fetch_hostfile

    try:
        hosts = fetch_hostfile(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {error}; expected a line `HOST slots=RANKS` for each host") from None
    if hosts is None:
        raise UserError(f"{path}: no such file; write a line `HOST slots=RANKS` for each host")
    return dict(hosts)


def launcher_exports() -> tuple[dict[str, str], list[Finding]]:
    """The variables that DeepSpeed's launcher gives the ranks which matter here, its PYTHONPATH and .deepspeed_env; what is wrong there."""
    exports = {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))}
    findings = []
    for file in dict.fromkeys((folder / os.environ.get("DS_ENV_FILE", ".deepspeed_env")).resolve() for folder in (Path.home(), Path())):
        for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
            name, is_set, value = line.partition("=")
            if is_set:
                exports[name.strip()] = value.strip()
            else:  # the launcher ends there with a traceback
                findings.append(
                    Finding("this host", f"{file}: line {number} is no NAME=value, which the launcher does not take: remove it")
                )
    return exports, findings


def for_all(remotes: list[Remote], ask: Callable[[Remote], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Ask all hosts at the same time -> answers by host; `unreachable` says why there is none."""

    def answer(remote: Remote) -> dict[str, Any]:
        try:
            return ask(remote)
        except Unreachable as error:
            return {"unreachable": str(error)}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip((remote.host for remote in remotes), pool.map(answer, remotes), strict=True))


def compare(facts: dict[str, dict[str, Any]]) -> list[Finding]:
    """What keeps the hosts that have answered from running the same program, seen from the first of them."""
    findings, first = [], next(iter(facts))
    for host, found in facts.items():
        program, expected = found["program"], facts[first]["program"]
        if program["lm1b"] == "missing":
            findings.append(Finding(host, "lm1b cannot be imported: bring the repository there, or pip install -c constraints.txt -e ."))
        elif program["lm1b"] != expected["lm1b"] != "missing":
            findings.append(
                Finding(host, f"lm1b's source ({program['lm1b']}) is not that of {first} ({expected['lm1b']}): bring the same code there")
            )
        for name in ("python", "torch", "deepspeed"):
            mine, theirs = (_version(name, facts_of[name]) for facts_of in (program, expected))
            if mine != theirs or mine == "missing":
                findings.append(Finding(host, f"{name} {program[name]}, {first} has {expected[name]}: pip install -c constraints.txt -e ."))
        if program != expected and not any(finding.host == host for finding in findings):
            names = [name for name in program if program[name] != expected[name]]
            findings.append(Finding(host, f"another {', '.join(names)} than on {first}, which should do no harm", is_note=True))
        findings += [Finding(host, text, is_note) for text, is_note in _troubles(found)]
    return findings


def _version(name: str, version: str) -> str:
    """As much of a version as must be equal."""
    return version.rpartition(".")[0] if name == "python" else version.partition("+")[0]


def _troubles(found: dict[str, Any]) -> list[tuple[str, bool]]:
    """What is wrong with one host by itself -> (text, whether it is only a note)."""
    troubles, interface = [], found["interface"]
    if abs(skew := _skew(found)) > LARGEST_SKEW_SECONDS:
        troubles.append((f"its clock is {skew:+.0f} s from this host's: set it (chrony, systemd-timesyncd)", False))
    if found["shared_memory"] < LEAST_SHARED_MEMORY:
        free = found["shared_memory"] >> 20
        troubles.append((f"/dev/shm has {free} MB free, which may be too little for GPUs (NCCL): docker run --shm-size=1g", True))
    if interface and interface not in found["interfaces"]:
        there = ", ".join(found["interfaces"])
        troubles.append((f"GLOO_SOCKET_IFNAME={interface}, and no such interface there ({there}): correct .deepspeed_env", False))
    own = found["own_address"] or ""
    if not interface and (not own or own.startswith("127.")):
        what = f"its name {found['host']} stands for {own or 'nothing'}, where ranks on CPUs (gloo) would wait for other hosts in vain"
        troubles.append((f"{what}: put GLOO_SOCKET_IFNAME=eth0, or your interface, into .deepspeed_env", True))
    return troubles


def _skew(found: dict[str, Any]) -> float:
    """Seconds by which a host's clock is ahead, to half of the time that asking it took."""
    ahead = found["time"] - (found["asked_at"] + found["seconds"] / 2)
    return 0.0 if abs(ahead) <= found["seconds"] / 2 else ahead


def check_meeting(remotes: list[Remote], address: str, port: int) -> list[Finding]:
    """Open the port on the first host, and reach it from all."""
    first = remotes[0]
    keeper = first.start("listen", str(port), str(len(remotes)), str(LISTEN_SECONDS))
    try:
        try:
            said = listening(keeper, first)
        except Unreachable as error:
            said = {"problem": str(error)}
        if said.get("problem"):
            return [Finding(first.host, f"port {port} cannot be opened ({said['problem']}): give another one with --master_port")]
        answers = for_all(remotes, lambda remote: remote.ask("connect", address, str(port)))
    finally:
        keeper.kill()
        keeper.communicate()
    return [
        Finding(
            host, f"{address}:{port} on {first.host} cannot be reached ({problem}): open the port, or give --master_addr and --master_port"
        )
        for host, answer in answers.items()
        if (problem := answer.get("unreachable") or answer.get("problem"))
    ]


def table(hosts: dict[str, int], facts: dict[str, dict[str, Any]], bad: set[str]) -> str:
    """A line a host."""
    rows = [["host", "ranks", *SHOWN, "clock", "/dev/shm", ""]]
    for host, ranks in hosts.items():
        found = facts.get(host)
        values = (
            [*(found["program"][name] for name in SHOWN), f"{_skew(found):+.0f} s", f"{found['shared_memory'] >> 20} MB"]
            if found
            else ["-"] * 6
        )
        rows.append([host, str(ranks), *values, "not ready" if host in bad else "ready"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def missing_programs() -> list[Finding]:
    """What the launcher needs on this host."""
    hints = {"pdsh": "apt-get install pdsh, or another --launcher, or --no_ssh", "ssh": "apt-get install openssh-client"}
    return [Finding("this host", f"{name} is not on PATH: {hint}") for name, hint in hints.items() if shutil.which(name) is None]


def main() -> int:
    arguments = parse_arguments()
    hosts = read_hostfile(arguments.hostfile)
    exports, findings = launcher_exports()
    findings += missing_programs()
    remotes = [Remote(host, arguments.ssh_port, exports=exports) for host in hosts]
    facts: dict[str, dict[str, Any]] = {}
    if shutil.which("ssh"):
        answers = for_all(remotes, lambda remote: remote.ask("facts"))
        findings += [Finding(host, answer["unreachable"]) for host, answer in answers.items() if "unreachable" in answer]
        facts = {host: answer for host, answer in answers.items() if "unreachable" not in answer}
        findings += compare(facts) if facts else []
        first = remotes[0].host
        address = arguments.master_addr or next(iter(facts.get(first, {}).get("addresses", [])), None)
        if address and first in facts:
            findings += check_meeting([remote for remote in remotes if remote.host in facts], address, arguments.master_port)
    print(table(hosts, facts, {finding.host for finding in findings if not finding.is_note}))
    for finding in sorted(findings, key=lambda finding: finding.is_note):
        print(f"{'note' if finding.is_note else 'problem'}: {finding.host}: {finding.text}")
    ready = all(finding.is_note for finding in findings)
    print(f"{len(hosts)} hosts, {sum(hosts.values())} ranks: {'ready' if ready else 'not ready'}")
    return 0 if ready else 2


if __name__ == "__main__":
    run_command(main)
