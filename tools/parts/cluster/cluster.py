"""The cluster: hosts with a network between them, up as long as the `with` block.

    with Cluster(hosts=2, rate="1gbit") as cluster:
        cluster.run(["deepspeed", "--hostfile", cluster.hostfile, "launch/train.py", "--config", config])
        cluster.host(2).cut()

1. The box is a process in a network, PID and mount namespace of its own; in it stands the switch, a bridge.
2. Every host is a process in namespaces of its own within the box, joined to the switch by a cable, a pair of veth devices, whose end
   at the host is `eth0` with an address of its own. The machine's own interfaces are never touched, and no name can clash.
3. On a host nothing can be written but its own tmpfs folders (/tmp, /dev/shm, /run, HOME) and the one folder that all share.
4. An ssh server listens on each, keys and host names are known to all, a hostfile lies in HOME: `pdsh` and DeepSpeed's launcher
   find what they find on a cluster.

All ends with the box's first process, and that ends with this one, even where this one is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from lm1b.errors import UserError
from parts.cluster.host import INTERFACE, Host, Traffic, are_idle, in_network_of, limit
from parts.cluster.needs import check_needs, find_program
from parts.harness.launching import REPOSITORY

BRIDGE, NETWORK = "switch", "10.77.0"
MAX_HOSTS = 64
# What the launcher passes on by itself is little: the rest of what a rank should know stands in ~/.deepspeed_env.
RANK_VARIABLES = ("OMP_NUM_THREADS", "LM1B_TIMEOUT_SECONDS", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR")
UNSHARE = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child"]
END_SECONDS = 30.0


class Cluster:
    """Hosts `node1`, `node2`, ...; see above.

    workplace: the folder that all share, at the same path everywhere. slots: ranks a host. rate, delay: of every host's link, as
    `1gbit` and `1ms`. variables: environment of commands and, by ~/.deepspeed_env, of ranks. Raises UserError.
    """

    def __init__(
        self,
        hosts: int = 2,
        *,
        workplace: Path | None = None,
        slots: int = 1,
        rate: str | None = None,
        delay: str | None = None,
        variables: dict[str, str] | None = None,
    ):
        if not 1 <= hosts <= MAX_HOSTS or slots < 1:
            raise UserError(f"{hosts} hosts with {slots} slots: expected 1 to {MAX_HOSTS} hosts and at least one slot")
        check_needs()
        self.workplace, self.slots, self.rate, self.delay = Path(workplace or Path.cwd()).resolve(), slots, rate, delay
        self.limit = limit(rate) if rate else None
        self.home = pwd.getpwuid(0).pw_dir
        self.hostfile = str(Path(self.home) / "hostfile")
        self.notes: list[str] = []  # what could not be done, for the user
        self.hosts: list[Host] = []
        self._variables = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ} | (variables or {})
        self._places = [{"name": f"node{n}", "address": f"{NETWORK}.{n}"} for n in range(1, hosts + 1)]
        self._firsts: list[subprocess.Popen[str]] = []  # the box's and the hosts' first processes
        self._check_workplace()

    def _check_workplace(self) -> None:
        hidden = [Path(self.home), *map(Path, ("/tmp", "/var/tmp", "/run", "/dev/shm"))]
        if not self.workplace.is_dir():
            raise UserError(f"{self.workplace}: the folder that the hosts are to share is not there")
        if any(folder == self.workplace or self.workplace in folder.parents for folder in hidden):
            raise UserError(f"{self.workplace}: every host has /tmp, /dev/shm, /run and {self.home} of its own; share a folder below")

    def __enter__(self) -> Cluster:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def host(self, number: int) -> Host:
        """The host `node<number>`."""
        return self.hosts[number - 1]

    def run(self, arguments: list[str], timeout: float = 600, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on host 1 to its end; output and errors in one."""
        return self.host(1).run(arguments, timeout, folder)

    def traffic(self) -> list[Traffic]:
        """What each host's interface has counted so far."""
        return [host.traffic() for host in self.hosts]

    def settle(self, seconds: float) -> bool:
        """Wait until no host has anything to do but its ssh server; whether that came to be."""
        return are_idle(self.hosts, seconds)

    def close(self) -> None:
        """Take everything down: when the box's first process has ended, all of its processes have, and its network is gone."""
        for first in self._firsts[:1]:
            with contextlib.suppress(OSError):
                if first.stdin:
                    first.stdin.close()
            try:
                first.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                first.kill()
        for first in self._firsts:
            first.wait(END_SECONDS)
            for pipe in (first.stdin, first.stdout, first.stderr):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()
        self._firsts, self.hosts = [], []

    # Building.

    def _build(self) -> None:
        switch = self._first(UNSHARE, {"role": "box", "bridge": BRIDGE, "hosts": self._places})
        enter = ["nsenter", f"--target={switch}", "--mount", "--net", "--pid", "--", *UNSHARE, "--ipc", "--uts"]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
        for number, place in enumerate(self._places, start=1):
            pid = self._first(enter, {"role": "host", **place, **self._shared()})
            variables = {**self._variables, "PATH": path}
            host = Host(number, place["name"], place["address"], pid, switch, self.home, self.workplace, variables)
            self._plug_in(host, switch)
            self.hosts.append(host)
        for host in self.hosts:
            self._asking(lambda host=host: host.start_ssh_server(str(find_program("sshd"))))

    def _shared(self) -> dict[str, Any]:
        """What every host is told."""
        # Both spellings of an address: torch asks by the second whose connection it has got, and there is no name server.
        names = "".join(f"{place['address']} {place['name']}\n::ffff:{place['address']} {place['name']}\n" for place in self._places)
        ranks = {"GLOO_SOCKET_IFNAME": INTERFACE, "NCCL_SOCKET_IFNAME": INTERFACE, **self._variables}
        code = [REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), *map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        kept = {str(path.resolve()) for path in code if path.is_dir() and path.is_absolute()} | {str(self.workplace)}
        return {
            "workplace": str(self.workplace),
            "home": self.home,
            "kept": sorted(kept),
            "hosts": self._places,
            "names": f"127.0.0.1 localhost\n{names}",
            "files": {
                "hostfile": "".join(f"{place['name']} slots={self.slots}\n" for place in self._places),
                ".deepspeed_env": "".join(f"{name}={value}\n" for name, value in ranks.items()),
            },
        }

    def _first(self, enter: list[str], spec: dict[str, Any]) -> int:
        """Start the first process of new namespaces and tell it what to set up. -> its id. Raises UserError."""
        command = [*enter, sys.executable, "-I", "-S", str(Path(__file__).with_name("init.py"))]
        # In a session of its own: Ctrl-C at the terminal is for the command that runs in the cluster.
        pipe = subprocess.PIPE
        first = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, text=True)
        self._firsts.append(first)
        assert first.stdin
        assert first.stdout
        assert first.stderr
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(spec), file=first.stdin, flush=True)
        line = first.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": " ".join(first.stderr.read().split())}
        if "error" in answer:
            what = spec.get("name", "the box")
            raise UserError(f"{what} cannot be set up ({answer['error']}); a cluster in a box needs all rights of root on this machine")
        return int(answer["pid"])

    def _plug_in(self, host: Host, switch: int) -> None:
        """The cable between host and switch, and how fast it is."""

        def connect() -> None:
            in_network_of(switch, *f"ip link add {host.port} type veth peer name {INTERFACE} netns {host.pid}".split())
            in_network_of(switch, *f"ip link set {host.port} master {BRIDGE} up".split())
            in_network_of(host.pid, *f"ip address add {host.address}/24 dev {INTERFACE}".split())
            in_network_of(host.pid, "ip", "link", "set", "lo", "up")
            in_network_of(host.pid, *f"ip link set {INTERFACE} addrgenmode none".split())  # no chatter of IPv6 in the counters
            in_network_of(host.pid, *f"ip link set {INTERFACE} up".split())

        self._asking(connect)
        for pid, device in ((host.pid, INTERFACE), (switch, host.port)):
            self._shape(pid, device)

    def _shape(self, pid: int, device: str) -> None:
        add, parent = ["tc", "qdisc", "add", "dev", device], ["root", "handle", "1:"]
        if self.delay:
            try:
                in_network_of(pid, *add, *parent, "netem", "delay", self.delay, "limit", "100000")
                parent = ["parent", "1:", "handle", "10:"]
            except subprocess.CalledProcessError as error:
                if "is unknown" not in error.stderr:
                    raise UserError(f"delay {self.delay!r}: {' '.join(error.stderr.split())}") from None
                self.delay = None
                self.notes.append("this kernel has no netem: the links have no delay of their own")
        if self.limit:
            self._asking(lambda: in_network_of(pid, *add, *parent, *(self.limit or [])))

    def _asking(self, action: Any) -> None:
        """Do something with the system's programs; raises UserError with what they say."""
        try:
            action()
        except subprocess.CalledProcessError as error:
            raise UserError(f"{' '.join(map(str, error.cmd))}: {' '.join((error.stderr or str(error)).split())}") from None
