"""Jobs whose ranks are processes that synchronize NumPy gradients over zmq, and that fail as they are told.

`fault_worker.py <folder>`: reads cases (`fault_jobs.Case`, JSON) from standard input, forks their ranks, a
few jobs at a time, and prints how each ended. Imports are paid once; every rank is a process of its own.
`fault_worker.py <folder> <case>`: is one rank, in the place that a launcher gave it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import hashlib
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import namespaces
import numpy as np
import zmq
from fault_jobs import CHECKPOINT, FAILED, LAST, MISMATCH, PAUSE, SHAPES, STEP, WITHIN, Case
from loopback_jobs import even_plan

import compll
from casync import frames, knobs, launch, plane, rendezvous, spec
from casync.channels import Channels
from casync.control import MismatchError, RankFailure
from casync.dtypes import exact
from casync.launch import RendezvousError
from casync.plan import Gradient
from casync.session import connect
from casync.spec import Op, Spec
from casync.synchronizer import Synchronizer
from casync.transports import base as transports

if TYPE_CHECKING:
    from collections.abc import Callable

    from casync.frames import Header

AT_ONCE = 8
"""Jobs."""
CODECS = {name: compll.compile(name) for name in ("onebit", "terngrad")} | {
    "terngrad 4": compll.compile("terngrad", bitwidth=4)
}


TIMED = {"kill in time": "KILL", "stop in time": "STOP"}
"""Faults that come turn / 100 seconds after the rank began: a signal."""


def later(seconds: float, name: str) -> None:
    """Have another process send this one a signal."""
    command = ["sh", "-c", f"sleep {seconds}; kill -s {name} {os.getpid()}"]
    subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


class Worker:
    """One rank of a case."""

    def __init__(self, case: Case, rank: int, folder: Path) -> None:
        self.case, self.rank, self.folder = case, rank, folder
        self.victim, self.had = rank == case.victim, False
        self.visitors = ExitStack()
        self.parameters = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}

    # --- what goes wrong

    def at(self, moment: str) -> None:
        """Have the fault here, if this is the rank and the moment."""
        if not self.victim or moment != self.case.moment or self.had or self.case.resume:
            return
        self.had = True
        match self.case.fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(0.5)  # the other threads stop when the main thread has been told
            case "pause":
                later(PAUSE, "CONT")
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise ValueError("the data set ends here")
            case "exit":
                sys.exit(7)
            case "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            case "interrupt all":
                os.killpg(0, signal.SIGINT)
            case "memory":
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 16),) * 2)
            case "cut off":
                for other in {0, 1, 2} - {self.rank}:
                    namespaces.cut(self.case.machines, self.rank, other)
            case "cut":
                namespaces.cut(self.case.machines, self.rank, (self.rank + 1) % self.case.size)
            case "hold":
                time.sleep(2.2 * self.case.timeout)
            case "strangers":
                visit(self.visitors)

    def pretend(self) -> None:
        """Be of another release, if that is the fault."""
        if self.victim and self.case.fault == "other":
            if self.case.moment == "release":
                spec.version = lambda _: "0.0.1"  # type: ignore[assignment]
            elif self.case.moment == "control version":
                plane.VERSION += 1
            elif self.case.moment == "frame version":
                frames.VERSION += 1

    def spec(self) -> Spec:
        """What is synchronized; on the victim something else, if that is the fault."""
        other = self.case.moment if self.victim and self.case.fault == "other" else ""
        shapes = dict(SHAPES)
        if other == "shape":
            shapes["conv"] = (91, 100)
        if other == "model":
            del shapes["bias"]
        dtypes = {"conv": "float16"} if other == "dtype" else {}
        gradients = tuple(
            Gradient(name, shape, dtypes.get(name, "float32")) for name, shape in shapes.items()
        )
        plan = even_plan(gradients, self.case.size)
        if other == "plan":
            plan = plan.uncompressed()
        codec: Any = None if self.case.codec == "none" else CODECS[self.case.codec]
        if other == "codec":
            codec = CODECS["terngrad 4"]
        return Spec(gradients, plan, codec, self.case.topology, Op.AVERAGE, seed=17 if other == "seed" else 5)

    def tap(self, transport: Any) -> None:
        """Watch the frames of the step in which the fault comes."""
        send, start = transport.send, transport.start
        after = (self.rank + 1) % self.case.size
        seen = {"sent": False, "received": False}

        def sending(peer: int, header: Header, body: Any, done: Any = None) -> None:
            if self.victim and self.case.fault == "corrupt" and header.step == STEP and body is not None:
                body = np.array(body)
                body[-1] ^= 16
            if self.victim and self.case.fault == "lose" and header.step >= STEP and peer == after:
                return
            send(peer, header, body, done)
            if header.step == STEP and not seen["sent"] and self.victim and self.case.moment == "sent":
                seen["sent"] = True
                time.sleep(0.1)  # until it has left
                self.at("sent")

        def starting(receive: Any) -> None:
            def receiving(peer: int, header: Header, body: memoryview) -> None:
                if header.step == STEP and not seen["received"]:
                    seen["received"] = True
                    self.at("received")
                receive(peer, header, body)

            start(receiving)

        transport.send, transport.start = sending, starting

    # --- training

    def run(self) -> None:
        """Train, from a checkpoint if the case says so."""
        self.pretend()
        if self.victim and self.case.fault in TIMED:
            later(self.case.turn / 100, TIMED[self.case.fault])
        self.at("before joining")
        meet = rendezvous.meet

        def meeting(*given: Any) -> Any:
            table = meet(*given)
            self.at("joining")
            return table

        rendezvous.meet = meeting
        with connect() as session:
            self.at("joined")
            self.tap(session.transport)
            synchronized = Synchronizer(
                session.control, Channels(session.transport, checksums=True), self.spec(), threads=1
            )
            try:
                self.train(synchronized)
            finally:
                synchronized.close()

    def train(self, synchronized: Synchronizer) -> None:
        """All steps."""
        begin = 0
        if self.case.resume:
            begin = CHECKPOINT
            saved = pickle.loads((self.folder / f"checkpoint.{self.rank}").read_bytes())
            self.parameters = saved["parameters"]
            synchronized.load_state_dict(saved["synchronizer"])
        for step in range(begin, LAST + 1):
            if step == CHECKPOINT and not self.case.resume:
                self.save(synchronized)
            self.step(synchronized, step)
        self.at("goodbye")

    def step(self, synchronized: Synchronizer, step: int) -> None:
        """One step: the gradients depend on the parameters, so that no difference is lost."""
        rng = np.random.default_rng([self.rank, step])
        if step == STEP:
            self.at("forward")
        gradients = {
            name: rng.standard_normal(values.size, np.float32) + np.float32(0.5) * values.ravel()
            for name, values in self.parameters.items()
        }
        if step == 0:
            self.at("first")
        for name in SHAPES:
            synchronized.submit(name, gradients[name])
            if step in (STEP, LAST):
                self.at("backward" if step == STEP else "last")
        outcome = synchronized.synchronize()
        for name in SHAPES:
            self.parameters[name] -= np.float32(0.1) * outcome.values[name].reshape(SHAPES[name])

    def save(self, synchronized: Synchronizer) -> None:
        """Write the checkpoint, whole or not at all."""
        saved = {"parameters": self.parameters, "synchronizer": synchronized.state_dict()}
        part = self.folder / f"part.{self.rank}"
        part.write_bytes(pickle.dumps(saved))
        part.rename(self.folder / f"checkpoint.{self.rank}")

    def digest(self) -> str:
        """Of the parameters."""
        return hashlib.sha256(b"".join(p.tobytes() for p in self.parameters.values())).hexdigest()


def sockets() -> list[int]:
    """The descriptors of those that this process has."""
    found = []
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            if str(file.readlink()).startswith("socket:"):
                found.append(int(file.name))
    return found


def visit(visitors: ExitStack) -> None:
    """Connect to every port at which this rank listens, as strangers would, and stay."""
    context = zmq.Context()
    visitors.callback(context.term)
    for descriptor in sockets():
        with socket.socket(fileno=os.dup(descriptor)) as one:
            if one.family != socket.AF_INET or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            address = one.getsockname()
        mute, loud = socket.create_connection(address), socket.create_connection(address)
        loud.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
        visitors.enter_context(mute)
        visitors.enter_context(loud)
        for user, secret in ((None, None), (b"1", b"0" * 32)):
            wrong = visitors.enter_context(context.socket(zmq.PAIR))
            wrong.linger = 0
            if user:
                wrong.plain_username, wrong.plain_password = user, secret
            wrong.connect("tcp://{}:{}".format(*address))
            with suppress(zmq.Again):  # refused already
                wrong.send(b'["abort", [1, null, null, "rubbish"]]', zmq.NOBLOCK)


def told(**fields: Any) -> None:
    """Print what the test reads."""
    print(json.dumps(fields), flush=True)


def work(case: Case, rank: int, folder: Path) -> int:
    """Be a rank; returns the exit code, or raises what ends the process as it would end a user's script."""
    faulthandler.dump_traceback_later(WITHIN - 5)  # what a rank that hangs does
    before = len(sockets())
    worker = Worker(case, rank, folder)
    code = 0
    try:
        worker.run()
        told(final=worker.digest())
    except RankFailure as failure:
        told(failure=failure.args)
        code = FAILED
    except (MismatchError, RendezvousError) as error:
        told(error=f"{type(error).__name__}: {error}")
        code = MISMATCH
    finally:
        left = [t.name for t in threading.enumerate() if t.name.startswith("casync")]
        worker.visitors.close()
        told(threads=left, sockets=len(sockets()) - before)
    return code


# --- the jobs ----------------------------------------------------------------------------------------------


class Running:
    """The processes of a case."""

    def __init__(self, number: int, case: Case, ranks: dict[int, int]) -> None:
        self.number, self.case, self.ranks = number, case, ranks
        self.begun = self.alone = time.monotonic()
        self.codes: dict[int, int | None] = {}
        self.continued: list[int] = []

    def look(self) -> bool:
        """Whether all have ended. What outlives the limit is killed, and has no exit code."""
        for rank, pid in self.ranks.items():
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        alive = [rank for rank in self.ranks if rank not in self.codes]
        if alive != [self.case.victim] or not stopped(self.ranks[alive[0]]):
            self.alone = time.monotonic()
        elif time.monotonic() - self.alone > 1 and not self.continued:
            # Nobody is left who could continue a stopped one: this is the user, after a while.
            self.continued = alive
            os.kill(self.ranks[alive[0]], signal.SIGCONT)
        if time.monotonic() - self.begun > WITHIN:
            for rank in alive:
                os.kill(self.ranks[rank], signal.SIGKILL)
                os.waitpid(self.ranks[rank], 0)
                self.codes[rank] = None
        return len(self.codes) == len(self.ranks)


def stopped(pid: int) -> bool:
    """Whether a process is."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def run_all(cases: list[Case], folder: Path) -> Callable[[], int] | None:
    """Fork every rank of every case; returns, in a rank's process, its work."""
    waiting = list(enumerate(cases))
    running: list[Running] = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number, case = waiting.pop(0)
            ranks: dict[int, int] = {}
            for rank in range(case.size):
                pid = os.fork()
                if not pid:
                    return prepared(case, rank, folder / case.name)
                ranks[rank] = pid
                os.setpgid(pid, ranks[0])
            running.append(Running(number, case, ranks))
        time.sleep(0.01)
        for job in [job for job in running if job.look()]:
            running.remove(job)
            told(case=job.number, codes=job.codes, continued=job.continued)
    return None


def prepared(case: Case, rank: int, folder: Path) -> Callable[[], int]:
    """Make this process a rank: its output, and its place in the job."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no rank outlives the test
    while os.getpgrp() == os.getpgid(os.getppid()):
        time.sleep(0.001)  # until the parent has put this process into the job's group
    if case.machines:
        with Path(f"/run/netns/{case.machines}{rank}").open() as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins without
    folder.mkdir(exist_ok=True)
    for fd, kind in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{kind}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, fd)
        os.close(file)
    os.environ |= {
        knobs.RANK.name: str(rank),
        knobs.SIZE.name: str(case.size),
        knobs.ADDR.name: case.address,
        knobs.TIMEOUT.name: str(case.timeout),
        knobs.START_TIMEOUT.name: str(case.start_timeout),
    }
    return lambda: work(case, rank, folder)


def launched(case: Case, folder: Path) -> Callable[[], int]:
    """Be the rank that a launcher has made of this process; its pid is left in the folder."""
    rank = launch.find().rank
    (folder / f"pid.{rank}").write_text(str(os.getpid()))
    return lambda: work(case, rank, folder)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        mine = launched(Case(**json.loads(sys.argv[2])), Path(sys.argv[1]))
    else:
        transports.load("zmq")  # once for all ranks, as the imports
        exact("float32")
        np.random.default_rng(0)
        gc.freeze()
        mine = run_all([Case(**fields) for fields in json.load(sys.stdin)], Path(sys.argv[1]))
    if mine is not None:
        sys.exit(mine())
