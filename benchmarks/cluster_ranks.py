"""The ranks of one process set, one a node, driven in lockstep; a set that is not measured is stopped.

A rank reads commands from standard input and answers on standard output, a line of JSON each (`serve`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster_network import INTERFACE, Network

HERE = Path(__file__).parent
PATIENCE = 900.0
"""Seconds that a command may take: PowerSGD, DDP and casync begin with all parameters at full size."""


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Be a rank: do what each line of standard input says, `{"do": NAME, ...}`, until it ends.

    What libraries print goes to standard error.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        replies.write(json.dumps(commands[command.pop("do")](**command)) + "\n")
        replies.flush()
    os._exit(0)  # gloo's threads may abort an orderly exit


class RankError(RuntimeError):
    """A rank died or did not answer; holds the end of its standard error."""


class Ranks:
    """Processes that run one of the scripts beside this file; a context manager."""

    def __init__(self, network: Network, script: str, port: int, *, horovod: bool = False) -> None:
        self._network = network
        self._script = script
        self._port = port
        self._horovod = horovod
        self._folder = tempfile.TemporaryDirectory()
        self._processes: list[subprocess.Popen[str]] = []
        self._replies: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._server: Any = None

    def __enter__(self) -> Ranks:
        """Start them; they join when `make` tells them to."""
        shared = self._rendezvous() if self._horovod else {}
        for node in range(self._network.nodes):
            with (Path(self._folder.name) / f"rank{node}.err").open("w") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*self._network.prefix(node), sys.executable, str(HERE / self._script)],
                        env={**os.environ, **self._environment(node), **shared},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                    )
                )
            threading.Thread(target=self._read, args=(node,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()
        if self._server is not None:
            self._server.stop()
        self._folder.cleanup()

    @property
    def pids(self) -> set[int]:
        """The processes' numbers."""
        return {process.pid for process in self._processes}

    def ask(self, **command: Any) -> list[dict[str, Any]]:
        """Send a command to all ranks; their replies in rank order. RankError if one fails."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
        found: dict[int, dict[str, Any]] = {}
        while len(found) < len(self._processes):
            try:
                rank, line = self._replies.get(timeout=PATIENCE)
            except queue.Empty:
                late = sorted(set(range(len(self._processes))) - found.keys())
                raise RankError(f"no answer to {command} from ranks {late} in {PATIENCE:g} s") from None
            if not line:
                text = (Path(self._folder.name) / f"rank{rank}.err").read_text()[-3000:]
                raise RankError(f"rank {rank} ended at {command}:\n{text}")
            found[rank] = json.loads(line)
        return [found[rank] for rank in sorted(found)]

    def pause(self) -> None:
        """Stop the processes: an idle library that looks for work takes CPU, too."""
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue them."""
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)

    def _read(self, rank: int) -> None:
        stream = self._processes[rank].stdout
        assert stream is not None
        for line in stream:
            self._replies.put((rank, line))
        self._replies.put((rank, ""))

    def _environment(self, node: int) -> Mapping[str, str]:
        size, first = str(self._network.nodes), self._network.address(0)
        return {
            "RANK": str(node),
            "WORLD_SIZE": size,
            "MASTER_ADDR": first,
            "MASTER_PORT": str(self._port),
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "CASYNC_RANK": str(node),
            "CASYNC_SIZE": size,
            "CASYNC_LOCAL_RANK": str(node),
            "CASYNC_LOCAL_SIZE": size,  # the nodes share the cores
            "CASYNC_ADDR": f"{first}:{self._port + 1}",
            "CASYNC_TIMEOUT": str(int(PATIENCE)),  # while others run, ranks are stopped
            "OMP_NUM_THREADS": "1",
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(int(PATIENCE)),
            "HOROVOD_RANK": str(node),
            "HOROVOD_SIZE": size,
            "HOROVOD_LOCAL_RANK": "0",
            "HOROVOD_LOCAL_SIZE": "1",
            "HOROVOD_CROSS_RANK": str(node),
            "HOROVOD_CROSS_SIZE": size,
            "HOROVOD_HOSTNAME": f"n{node}",
        }

    def _rendezvous(self) -> Mapping[str, str]:
        """Start Horovod's rendezvous on the bridge, which all nodes reach."""
        from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
        from horovod.runner.http.http_server import RendezvousServer

        self._server = RendezvousServer()
        port = self._server.start()
        hosts = ",".join(f"n{node}:1" for node in range(self._network.nodes))
        self._server.init(get_host_assignments(parse_hosts(hosts), self._network.nodes))
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": self._network.gateway,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_GLOO_IFACE": INTERFACE,
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }
