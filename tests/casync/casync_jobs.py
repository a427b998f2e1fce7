"""Jobs for tests: ranks as threads of this process, and ranks as processes of their own."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casync.address import is_ipv6, with_port
from casync.launch import Launch, Rank0
from casync.session import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casync.session import Session

WORKER = Path(__file__).with_name("casync_worker.py")
PATIENCE = 60.0
"""Seconds after which a test gives up on a thread or process: only a failing test waits so long."""


def free_port() -> int:
    """A port at which nobody listens, outside the range from which the system gives ports to anyone.

    A port of that range, free when it is asked for, may be another socket's before rank 0 listens there.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def ipv6_loopback() -> str:
    """An IPv6 address of this machine: where it has no ::1, the one that maps 127.0.0.1 (RFC 4291)."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return "::ffff:127.0.0.1"
    return "::1"


IPV6 = ipv6_loopback()


def listening() -> set[tuple[str, int]]:
    """The addresses at which this process listens for TCP (proc(5), net/tcp and net/tcp6)."""
    own = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(str(entry.readlink()))
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                address, port = fields[1].split(":")
                words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
                found.add((socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)), int(port, 16)))
    return found


def new_listening(before: set[tuple[str, int]], count: int) -> set[tuple[str, int]]:
    """The ones that came, once they are so many: ZeroMQ gives the port where ranks met back in a while."""
    deadline = time.monotonic() + PATIENCE
    while len(found := listening() - before) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def places(size: int, host: str = "127.0.0.1") -> list[Launch]:
    """The places of a job whose ranks meet at a free port of this machine."""
    meeting = Rank0(host, free_port())
    return [Launch(rank, size, meeting=meeting) for rank in range(size)]


def in_threads(size: int, call: Callable[[int], Any]) -> list[Any]:
    """Call `call(rank)` in a thread a rank; return what each returned, or the exception that ended it."""
    results: list[Any] = [TimeoutError("still running")] * size

    def run(rank: int) -> None:
        try:
            results[rank] = call(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return results


@contextlib.contextmanager
def sessions(
    size: int, timeout: float = 30.0, host: str = "127.0.0.1", encrypt: bool = False
) -> Iterator[list[Session]]:
    """The sessions of a job of `size` ranks in this process; closed together, as collectives would be."""
    where = places(size, host)
    joined = in_threads(size, lambda rank: connect(timeout=timeout, place=where[rank], encrypt=encrypt))
    broken = [error for error in joined if isinstance(error, Exception)]
    if broken:
        raise broken[0]
    try:
        yield joined
    finally:
        in_threads(size, lambda rank: joined[rank].close())


@dataclass
class Ended:
    """How a rank's process ended."""

    code: int
    out: str
    err: str


@dataclass
class Job:
    """Processes that run `casync_worker.py <task>`; on leaving the block none is left."""

    size: int
    task: str
    timeout: float = 3.0
    start_timeout: float = 25.0
    absent: tuple[int, ...] = ()
    host: str = "127.0.0.1"
    encrypt: bool = False
    processes: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    def __enter__(self) -> Job:
        address = with_port(self.host, free_port())
        for rank in range(self.size):
            if rank not in self.absent:
                environ = os.environ | {
                    "CASYNC_RANK": str(rank),
                    "CASYNC_SIZE": str(self.size),
                    "CASYNC_ADDR": address,
                    "CASYNC_TIMEOUT": str(self.timeout),
                    "CASYNC_START_TIMEOUT": str(self.start_timeout),
                    "CASYNC_ENCRYPT": str(int(self.encrypt)),
                    "PYTHONUNBUFFERED": "1",
                    "OMP_NUM_THREADS": "1",
                }
                self.processes[rank] = subprocess.Popen(
                    [sys.executable, str(WORKER), self.task],
                    env=environ,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate()

    def ended(self, within: float = 30.0) -> dict[int, Ended]:
        """Wait until every process has ended by itself, all within `within` seconds."""
        deadline = time.monotonic() + within
        result = {}
        for rank, process in self.processes.items():
            out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            result[rank] = Ended(process.returncode, out, err)
        return result


class Store:
    """A key-value store that speaks HTTP as Horovod's rendezvous does: PUT, GET, 404 until a key is there."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        held: dict[str, bytes] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                held[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                value = held.get(self.path)
                self.send_response(404 if value is None else 200)
                self.send_header("Content-Length", str(len(value or b"")))
                self.end_headers()
                self.wfile.write(value or b"")

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self.held = held

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if is_ipv6(host) else socket.AF_INET

        self._server = Server((host, 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> Store:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
