"""Messages a second and CPU a message of the zmq transport, between two processes of this machine.

    python benchmarks/transport.py            writes benchmarks/results/transport.md

Both ranks send at once, each with at most WINDOW frames in flight, so that a figure holds sending and
receiving of one message a rank. CPU is that of the whole process: Python, pyzmq and ZeroMQ's own threads.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import zmq

from casync.frames import Header
from casync.session import connect

SIZES = (("64 B", 64, 40_000), ("64 KiB", 1 << 16, 20_000), ("1 MiB", 1 << 20, 2_000))
WINDOW = 64
REPEATS = 3
RESULT = Path(__file__).parent / "results" / "transport.md"


def rank() -> None:
    """Run as one of the two ranks; rank 0 prints a line a measurement."""
    with connect() as session:
        peer = 1 - session.rank
        window = threading.Semaphore(WINDOW)
        arrived = threading.Semaphore(0)
        session.transport.start(lambda *_: arrived.release())
        for name, nbytes, count in SIZES * REPEATS:
            body = np.zeros(nbytes, np.uint8)
            header = Header(0, 0, 0, 0, nbytes)
            session.control.gather("ready", b"")
            begin, cpu, python = time.perf_counter(), time.process_time(), io_thread_seconds()
            for number in range(count):
                window.acquire()
                session.transport.send(peer, header, body, window.release)
                if number >= WINDOW:
                    arrived.acquire()
            for _ in range(min(WINDOW, count)):
                arrived.acquire()
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
            python = io_thread_seconds() - python
            session.control.gather("done", b"")
            if session.rank == 0:
                print(name, seconds, cpu, python, count, sep="\t", flush=True)


def io_thread_seconds() -> float:
    """CPU seconds that the transport's I/O thread, which is Python, has used (Linux)."""
    (thread,) = (it for it in threading.enumerate() if it.name.startswith("casync zmq"))
    return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    """Start the two ranks and write the table."""
    environ = os.environ | {"CASYNC_SIZE": "2", "CASYNC_ADDR": "127.0.0.1:29417"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank"],
            env=environ | {"CASYNC_RANK": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    out, _ = [process.communicate(timeout=300)[0] for process in ranks]
    rows: dict[str, list[tuple[float, float, float, int]]] = {}
    for line in out.splitlines():
        name, seconds, cpu, python, count = line.split("\t")
        rows.setdefault(name, []).append((float(seconds), float(cpu), float(python), int(count)))
    lines = [
        "# The zmq transport between two processes of one machine",
        "",
        "`python benchmarks/transport.py`: both ranks send and receive at once, a figure is for one rank's",
        f"message sent and one received; median of {REPEATS} interleaved runs. CPU is that of the whole",
        "process (Python, the threads of ZeroMQ, the kernel), and of the one I/O thread in Python alone.",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}.",
        "",
        "| body | messages/s each way | MB/s each way | CPU a message, us | of it the I/O thread, us |",
        "|---|---|---|---|---|",
    ]
    for (name, nbytes, _), runs in zip(SIZES, rows.values(), strict=True):
        seconds, cpu, python, count = sorted(runs)[len(runs) // 2]
        lines.append(
            f"| {name} | {count / seconds:,.0f} | {count * nbytes / seconds / 1e6:,.0f} "
            f"| {cpu / count * 1e6:.1f} | {python / count * 1e6:.1f} |"
        )
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", action="store_true", help="run as a rank (used by the benchmark itself)")
    if parser.parse_args().rank:
        rank()
    else:
        main()
