"""A cluster of network namespaces on one machine: a node each, joined by a bridge, with limited links.

A token bucket (tbf) in both directions of every node's link limits it; TCP's payload then reaches 95 to 97 %
of the rate. Needs root and the commands ip and tc. Everything that is made is removed at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

INTERFACE = "eth0"


class NetworkError(RuntimeError):
    """The cluster cannot be made here; says what is missing."""


class Network:
    """Nodes 0 to n - 1 with the addresses 10.x.y.1 and up; a context manager.

    Names and x.y are of this process's number, so that several networks can be there at once.
    """

    def __init__(self, nodes: int) -> None:
        """Raise NetworkError without root, ip or tc."""
        missing = [command for command in ("ip", "tc") if shutil.which(command) is None]
        if missing:
            raise NetworkError(f"{' and '.join(missing)} not found: install iproute2")
        if os.geteuid() != 0:
            raise NetworkError("network namespaces need root: run this with sudo")
        self.nodes = nodes
        number = os.getpid()
        self._tag = f"cc{number % 100_000}"
        self._subnet = f"10.{64 + number // 256 % 128}.{number % 256}"

    def __enter__(self) -> Network:
        """Make bridge, namespaces and links, without a limit."""
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove them."""
        self._remove()

    def limit(self, bits_per_second: int | None) -> None:
        """Limit every link in both directions; None takes the limit away."""
        for node in range(self.nodes):
            for where, device in ((self._inside(node), INTERFACE), ([], self._link(node))):
                if bits_per_second is None:
                    # deleting what is not there fails, and that is all right
                    _run("tc", *where, "qdisc", "del", "dev", device, "root", check=False)
                    continue
                burst = max(128 * 1024, bits_per_second // 4000)  # 256 kB at 1 Gbit/s; less loses packets
                rate = ("rate", f"{bits_per_second}bit", "burst", str(burst), "latency", "50ms")
                _run("tc", *where, "qdisc", "replace", "dev", device, "root", "tbf", *rate)

    def prefix(self, node: int) -> list[str]:
        """What a command line begins with to run on a node, under the node's own host name."""
        named = f'hostname {self._node(node)} && exec "$@"'  # gloo listens where the host's name points to
        return ["ip", "netns", "exec", self._node(node), "unshare", "--uts", "sh", "-c", named, "sh"]

    def address(self, node: int) -> str:
        """A node's address."""
        return f"{self._subnet}.{node + 1}"

    @property
    def gateway(self) -> str:
        """The bridge's address: where the nodes reach this process."""
        return f"{self._subnet}.254"

    def _node(self, node: int) -> str:
        return f"{self._tag}n{node}"

    def _link(self, node: int) -> str:
        return f"{self._tag}v{node}"

    def _etc(self, node: int) -> Path:
        """What `ip netns exec` puts in the place of files in /etc."""
        return Path("/etc/netns") / self._node(node)

    def _inside(self, node: int) -> list[str]:
        return ["-n", self._node(node)]

    def _make(self) -> None:
        bridge = f"{self._tag}br"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.gateway}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        hosts = "".join(f"{self.address(node)} {self._node(node)}\n" for node in range(self.nodes))
        for node in range(self.nodes):
            self._etc(node).mkdir(parents=True)
            (self._etc(node) / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
            name, link, inside = self._node(node), self._link(node), self._inside(node)
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", INTERFACE, "netns", name)
            _run("ip", "link", "set", link, "master", bridge, "up")
            for device in ("lo", INTERFACE):
                _run("ip", *inside, "link", "set", device, "up")
            _run("ip", *inside, "addr", "add", f"{self.address(node)}/24", "dev", INTERFACE)

    def _remove(self) -> None:
        for node in range(self.nodes):
            _run("ip", "link", "del", self._link(node), check=False)  # the namespace's end takes it later
            _run("ip", "netns", "del", self._node(node), check=False)
            shutil.rmtree(self._etc(node), ignore_errors=True)
        _run("ip", "link", "del", f"{self._tag}br", check=False)


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and done.returncode:
        text = (done.stderr or done.stdout).strip()
        raise NetworkError(f"{' '.join(command)}: {text}; the kernel must have bridge, veth and sch_tbf")
