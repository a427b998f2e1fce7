"""Machines of their own for ranks: network namespaces on a bridge. They need root and the command `ip`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

SUBNET = "10.78.0"
NOBODY = "02:00:00:00:00:ff"
"""An Ethernet address at which nobody listens."""


def possible() -> bool:
    """Whether this process may make namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"cs{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made


@contextmanager
def machines(count: int) -> Iterator[str]:
    """Make so many; yields the prefix of their names, which a number follows. Addresses: `address`."""
    prefix = f"cs{os.getpid()}n"
    bridge = f"cs{os.getpid()}b"
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for number in range(count):
            name, link = f"{prefix}{number}", f"cs{os.getpid()}v{number}"
            _ip("netns", "add", name)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", link, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        yield prefix
    finally:
        for number in range(count):
            _ip("link", "del", f"cs{os.getpid()}v{number}", check=False)  # a namespace gives it up later
            _ip("netns", "del", f"{prefix}{number}", check=False)
        _ip("link", "del", bridge, check=False)


def address(number: int) -> str:
    """Where a machine is."""
    return f"{SUBNET}.{number + 1}"


def cut(prefix: str, one: int, other: int) -> None:
    """From now on what two machines send each other is lost; the rest of the network stays."""
    for here, there in ((one, other), (other, one)):
        entry = ("replace", address(there), "lladdr", NOBODY, "dev", "eth0", "nud", "permanent")
        _ip("-n", f"{prefix}{here}", "neigh", *entry)


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True)
