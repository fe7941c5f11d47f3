"""tools/check_hosts.py against a real sshd on loopback: two addresses are two hosts."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import run_forked
from parts.check_hosts.remote import Remote, Unreachable
from ssh_server import SshServer, needs_ssh, ssh_server
from tiny import REPOSITORY, environment, free_port

pytestmark = needs_ssh


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("127.0.0.1 slots=2\n127.0.0.2 slots=1\n")
    return path


def check(server: SshServer, hostfile: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The README's command."""
    meeting = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    arguments = ["--hostfile", str(hostfile), "--ssh_port", str(server.port), *meeting, *more]
    own = environment(**{"PATH": server.path(), "PYTHONPATH": str(REPOSITORY), **variables})
    return run_forked("tools/check_hosts.py", arguments, [own], REPOSITORY, timeout=120)


def problems(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("problem: ")]


def test_two_hosts_that_are_ready(server: SshServer, hostfile: Path) -> None:
    done = check(server, hostfile)
    assert (done.returncode, problems(done), done.stderr) == (0, [], ""), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["host", "ranks"], ["127.0.0.1", "2"], ["127.0.0.2", "1"]]
    assert lines[1].endswith(" ready")
    assert lines[-1] == "2 hosts, 3 ranks: ready"


def test_an_unknown_host_and_a_port_that_is_taken(server: SshServer, hostfile: Path) -> None:
    hostfile.write_text("127.0.0.1 slots=1\nno-such-host.invalid slots=1\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = check(server, hostfile, "--master_port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    unknown, port = problems(done)
    assert unknown.startswith("problem: no-such-host.invalid: this name is unknown")
    assert port.endswith("(Address already in use): give another one with --master_port")
    assert done.stdout.endswith("2 hosts, 2 ranks: not ready\n")


def test_a_refused_port_and_no_pdsh(server: SshServer, hostfile: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for program in (str(server.programs / "ssh"), shutil.which("sh"), shutil.which("env")):
        (tmp_path / "few" / Path(str(program)).name).symlink_to(str(program))
    refused = free_port()
    done = check(server, hostfile, "--ssh_port", str(refused), PATH=str(tmp_path / "few"))
    assert done.returncode == 2
    assert problems(done) == [
        "problem: this host: pdsh is not on PATH: apt-get install pdsh, or another --launcher, or --no_ssh",
        *(
            f"problem: {host}: ssh is refused on port {refused}: start sshd there, or give its port with --ssh_port"
            for host in ("127.0.0.1", "127.0.0.2")
        ),
    ]


def test_a_host_with_other_code_and_another_torch(hostfile: Path, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "lm1b", tmp_path / "other" / "lm1b", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "other" / "lm1b" / "more.py").touch()
    if REPOSITORY in Path(sys.prefix).parents:  # a virtual environment within the repository
        (tmp_path / "other" / Path(sys.prefix).relative_to(REPOSITORY)).symlink_to(sys.prefix)
    (tmp_path / "other" / "torch-2.10.0.dist-info").mkdir()
    (tmp_path / "other" / "torch-2.10.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0\n")
    with ssh_server(tmp_path / "ssh", elsewhere=(REPOSITORY, tmp_path / "other")) as server:
        done = check(server, hostfile)
    assert done.returncode == 2, done.stderr
    source, torch = problems(done)
    assert source.startswith("problem: 127.0.0.2: lm1b's source (")
    assert torch.startswith("problem: 127.0.0.2: torch 2.10.0, 127.0.0.1 has ")


def test_a_folder_or_a_python_that_is_not_there_is_named(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", server.path())
    with pytest.raises(Unreachable, match="/no/such/folder is not there, where the launcher goes"):
        Remote("127.0.0.1", server.port, folder="/no/such/folder").ask("facts")
    with pytest.raises(Unreachable, match="/no/such/python is not there, which the launcher starts"):
        Remote("127.0.0.1", server.port, python="/no/such/python").ask("facts")


@pytest.mark.parametrize("text", [None, "", "127.0.0.1\n", "127.0.0.1 slots=1\n127.0.0.1 slots=1\n"])
def test_a_hostfile_that_the_launcher_would_not_take_is_one_line(server: SshServer, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    done = check(server, path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"lm1b: error: {path}: ")
    assert "HOST slots=RANKS" in done.stderr


def test_an_interface_that_is_not_there_is_found_in_the_launchers_own_file(server: SshServer, hostfile: Path, tmp_path: Path) -> None:
    (tmp_path / "environment").write_text("GLOO_SOCKET_IFNAME=eth77\n")
    done = check(server, hostfile, DS_ENV_FILE=str(tmp_path / "environment"))
    assert done.returncode == 2
    assert [line.split(",")[0] for line in problems(done)] == [f"problem: 127.0.0.{n}: GLOO_SOCKET_IFNAME=eth77" for n in (1, 2)]
