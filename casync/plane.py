"""The control plane: one small ZeroMQ connection a pair, one thread a rank that owns them all.

What travels (JSON, then a body in `gather`), both ways on each connection:

    hello   rank, protocol, secret      first message of each side; nothing else is sent before the other's
    beat    wait, idle, last            every second
    gather  sequence number, topic      the one collective; `agree` is made of it
    accuse  a failure                   to the arbiter, the lowest rank that is heard, or one that hears it
    abort   a failure                   the arbiter's decision: it takes the first accusation; all tell all
    bye                                 what closes after this is no death

The arbiter is there so that all ranks raise the same failure when several notice one at the same time.
A rank that gets no decision within a second decides itself.

Fork: a child must not use casync; a data loader's workers do not. While such a child outlives its killed
parent it keeps the parent's connections open, so that the death is noticed when the child ends or after T.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from casync import detect, frames
from casync.control import NO_STEP, MismatchError, RankFailure, Wait, differences, report
from casync.detect import Beat
from casync.machine import resume
from casync.mailbox import Mailbox
from casync.peer import Peer, pack, unwait, wait_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casync.gate import Gate, Socket
    from casync.machine import Process

VERSION = 1
"""Of the control messages."""
BEAT = 1.0
"""Seconds between heartbeats."""
TICK = 0.25
"""Seconds between two looks at the detectors."""
DECISION = 1.0
"""Seconds that the arbiter has."""
GATHER_LIMIT = 1 << 20
"""Bytes of a value that `gather` takes."""


def _protocol() -> str:
    """What a rank speaks: the versions of control messages and of frames."""
    return f"{VERSION}.{frames.VERSION}"


class Plane:
    """The control plane (`casync.control.Control`) over ZeroMQ. Thread-safe; the thread is a daemon."""

    def __init__(
        self,
        rank: int,
        sockets: Mapping[int, tuple[Socket, bool]],
        processes: Sequence[Process],
        gate: Gate,
        secret: str,
        timeout: float,
    ) -> None:
        """Take over `sockets` (peer -> socket, whether this side connects) and `gate`.

        timeout: T in seconds.
        """
        now = time.monotonic()
        self.rank, self.size, self.timeout = rank, len(sockets) + 1, timeout
        self._gate, self._secret = gate, secret
        self._peers = {
            peer: Peer(peer, socket, dialled, processes[peer], now)
            for peer, (socket, dialled) in sockets.items()
        }
        self._mail: Mailbox[Callable[[], None]] = Mailbox()
        self._wait: tuple[Wait | None, float] = (None, now)  # of the executor: what, and since when
        self._topic: tuple[Wait, float] | None = None  # of a running collective
        self._last: Wait | None = None
        self._accusation: tuple[RankFailure, float] | None = None  # given to the arbiter, and when
        self._failure: RankFailure | None = None
        self._calls: list[Callable[[RankFailure], None]] = []
        self._changed = threading.Condition()  # of _failure, _calls, _gathered, _closed
        self._collective = threading.Lock()
        self._sequence = 0
        self._gathered: defaultdict[int, dict[int, tuple[str, bytes]]] = defaultdict(dict)
        self._end = math.inf  # when the thread ends, though a peer has not said hello yet
        self._closed = self._begun = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"casync control {rank}", daemon=True)

    def start(self) -> None:
        """Start the thread. Whoever is interrupted meanwhile has a plane to close, whether it runs or not."""
        self._begun = True
        self._thread.start()

    # --- the Control protocol, called by any thread ---------------------------------------------------------

    def waits(self, wait: Wait | None) -> None:
        """Say what this rank waits for now. Costs two assignments; the next heartbeat carries it."""
        if wait is not None:
            self._last = wait
        self._wait = (wait, time.monotonic())

    def abort(self, failure: RankFailure) -> None:
        """Fail the job. Returns when it has failed, so that `check` raises: the first failure of any rank."""
        self._mail.put(lambda: self._accuse(failure))
        if threading.current_thread() is not self._thread:
            with self._changed:
                self._changed.wait_for(lambda: self._failure or self._closed, timeout=2 * DECISION)

    def check(self) -> None:
        """Raise the job's failure if there is one."""
        if self._failure is not None:
            raise RankFailure(*self._failure.args)

    def on_failure(self, call: Callable[[RankFailure], None]) -> None:
        """Have `call` called once, in the control thread; here and now if the job has already failed."""
        with self._changed:
            if self._failure is None:
                self._calls.append(call)
                return
        call(self._failure)

    def agree(self, topic: str, facts: Mapping[str, str]) -> None:
        """Collective: raise MismatchError on every rank unless all hold equal `facts`."""
        text = json.dumps(dict(facts), sort_keys=True).encode()
        problem = differences(topic, [json.loads(held) for held in self.gather(topic, text)])
        if problem:
            raise MismatchError(problem)

    def gather(self, topic: str, value: bytes) -> list[bytes]:
        """Collective: return every rank's `value` in rank order.

        Raises RankFailure when the job fails meanwhile, MismatchError when the ranks are in collectives on
        other topics, ValueError above 1 MiB.
        """
        if len(value) > GATHER_LIMIT:
            raise ValueError(f"gather({topic!r}) takes at most {GATHER_LIMIT} bytes, not {len(value)}")
        with self._collective:
            sequence, self._sequence = self._sequence, self._sequence + 1
            self._mail.put(lambda: self._broadcast(pack("gather", sequence, topic), value))
            try:
                with self._changed:
                    while missing := self._peers.keys() - self._gathered[sequence].keys():
                        self.check()
                        if self._closed:
                            raise RuntimeError("the casync session is closed")
                        self._topic = (Wait(min(missing), topic, NO_STEP), time.monotonic())
                        self._changed.wait()
                    got = self._gathered.pop(sequence)
            finally:
                self._topic = None
                self._wait = (self._wait[0], time.monotonic())
        got[self.rank] = (topic, value)
        problem = differences("the order of collectives", [{"now in": got[r][0]} for r in sorted(got)])
        if problem:
            raise MismatchError(problem)
        return [got[r][1] for r in sorted(got)]

    def close(self) -> None:
        """Say goodbye and end the thread. Idempotent; returns within two seconds whatever the peers do."""
        self._mail.put(self._stop)
        if self._begun and self._ended.wait(2):
            self._thread.join()

    # --- the control thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # a thread that died silently would look like a healthy rank
            self._decide(RankFailure(self.rank, None, None, f"its control thread failed: {error!r}"))
            raise
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            for peer in self._peers.values():
                peer.close()
            self._gate.socket.close(0)
            self._mail.close()
            self._ended.set()

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._mail, zmq.POLLIN)
        poller.register(self._gate.socket, zmq.POLLIN)
        by_socket: dict[Any, Peer] = {}
        by_monitor: dict[Any, Peer] = {}
        for peer in self._peers.values():
            by_socket[peer.socket] = by_monitor[peer.monitor] = peer
            poller.register(peer.socket, zmq.POLLIN)
            poller.register(peer.monitor, zmq.POLLIN)
            if peer.dialled:
                peer.socket.send(self._hello())
        next_beat = looked = time.monotonic()
        while not self._over(looked):
            ready = dict(poller.poll(int(1000 * TICK) if self._mail.sleep() else 0))
            self._mail.awake()
            self._excuse(time.monotonic() - looked)
            while task := self._mail.take():
                task()
            if self._gate.socket in ready:
                self._gate.answer()
            for socket in ready.keys() & by_socket.keys():
                self._receive(by_socket[socket])
            for monitor in ready.keys() & by_monitor.keys():
                self._watch(by_monitor[monitor])
            looked = now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT
                wait, since = self._topic or self._wait
                self._broadcast(pack("beat", wait_fields(wait), now - since, wait_fields(self._last)))
            self._detect(now)

    def _excuse(self, gap: float) -> None:
        """Count no silence against the peers while this process itself was stopped, for `gap` seconds."""
        if gap > 2 * BEAT:
            for peer in self._peers.values():
                peer.heard += gap

    def _detect(self, now: float) -> None:
        if self._failure is not None:
            return
        if self._accusation is None:
            departed = {peer.rank for peer in self._peers.values() if peer.departed}
            failure = detect.suspect(self.rank, self._beats(now), departed, self.timeout)
            if failure is not None:
                self._accuse(failure)
        elif now - self._accusation[1] > DECISION:
            self._decide(self._accusation[0])

    def _beats(self, now: float) -> dict[int, Beat]:
        wait, since = self._topic or self._wait
        beats = {self.rank: Beat(wait, now - since, self._last, 0.0)}
        for peer in self._peers.values():
            beats[peer.rank] = Beat(*peer.beat, now - peer.heard)
        return beats

    def _receive(self, peer: Peer) -> None:
        """Handle all that has come from `peer`."""
        while int(peer.socket.get(zmq.EVENTS)) & zmq.POLLIN:
            head, *bodies = peer.socket.recv_multipart(copy=False)
            try:
                kind, *fields = json.loads(bytes(head.buffer))
                if kind == "hello":
                    rank, protocol, secret = fields
                    self._welcome(peer, rank, protocol, secret)
                    peer.fd = head.get(zmq.SRCFD)
                elif peer.joined:
                    self._handle(peer, kind, fields, [bytes(body.buffer) for body in bodies])
            except (ValueError, TypeError, IndexError, AttributeError) as error:
                self._accuse(RankFailure(peer.rank, None, None, f"it sent a broken control message: {error}"))

    def _welcome(self, peer: Peer, rank: int, protocol: str, secret: str) -> None:
        wrong = ""
        if (rank, secret) != (peer.rank, self._secret):
            wrong = "another job's program answers at its address"
        elif protocol != _protocol():
            wrong = (
                f"it speaks protocol {protocol}, this rank {_protocol()}: install one release on all ranks"
            )
        if wrong:
            self._accuse(RankFailure(peer.rank, None, None, wrong))
            return
        peer.joined, peer.heard = True, time.monotonic()
        if not peer.dialled:
            peer.send([self._hello()])
        for parts in peer.held:
            peer.send(parts)
        peer.held.clear()

    def _handle(self, peer: Peer, kind: str, fields: list[Any], bodies: list[bytes]) -> None:
        peer.heard = time.monotonic()
        match kind, fields:
            case "beat", [wait, idle, last]:
                peer.beat = (unwait(wait), float(idle), unwait(last))
            case "gather", [sequence, topic]:
                with self._changed:
                    self._gathered[sequence][peer.rank] = (topic, bodies[0])
                    self._changed.notify_all()
            case "accuse", [failure]:
                self._pass_on(RankFailure(*failure))
            case "abort", [failure] if self._failure is None:
                self._broadcast(pack("abort", failure))  # for those that the arbiter does not reach
                self._fail(RankFailure(*failure))
            case "abort", [_]:
                pass
            case "bye", []:
                peer.departed = True
                peer.beat = (None, 0.0, peer.beat[2])
            case _:
                raise ValueError(f"unknown kind {kind!r}")

    def _watch(self, peer: Peer) -> None:
        """Handle what the monitor of `peer` says of its connection."""
        while peer.monitor.poll(0):
            event = recv_monitor_message(peer.monitor)
            # At a bound socket strangers come and go; theirs is not the connection that said hello.
            if not peer.dialled and not (
                event["event"] == zmq.EVENT_DISCONNECTED and event["value"] == peer.fd
            ):
                continue
            self._receive(peer)  # what it sent before, a goodbye or an abort, counts first
            if peer.reachable:
                peer.lost = True
                reason = "its process has ended" if peer.joined else "its process ended before it joined"
                beats = self._beats(time.monotonic())
                self._accuse(detect.failure(peer.rank, self.rank, beats, f"{reason} (connection closed)"))

    # --- failure --------------------------------------------------------------------------------------------

    def _accuse(self, failure: RankFailure) -> None:
        """Bring `failure` before the arbiter, which may be this rank."""
        if self._failure is not None or self._accusation is not None:
            return
        now = time.monotonic()
        heard = self._heard(now)
        judge = min([self.rank, *heard])
        silent = (peer for peer in self._peers.values() if peer.reachable and peer.rank not in heard)
        if judge == self.rank and any(peer.rank < judge for peer in silent):
            judge = min(heard, default=judge)  # it may hear the one that this rank does not, and passes it on
        if judge == self.rank:
            self._decide(failure)
        else:
            self._accusation = (failure, now)
            self._peers[judge].send([pack("accuse", failure.args)])

    def _pass_on(self, failure: RankFailure) -> None:
        """Decide on what another rank brings, or bring it before the arbiter that this rank hears."""
        arbiter = min([self.rank, *self._heard(time.monotonic())])
        if arbiter == self.rank:
            self._decide(failure)
        else:
            self._peers[arbiter].send([pack("accuse", failure.args)])

    def _heard(self, now: float) -> list[int]:
        """The ranks that are not known to be lost or silent."""
        peers = self._peers.values()
        return [peer.rank for peer in peers if peer.reachable and now - peer.heard < self.timeout]

    def _decide(self, failure: RankFailure) -> None:
        """As the arbiter: tell all ranks, print, and fail here too."""
        if self._failure is None:
            self._broadcast(pack("abort", failure.args))
            report(self.rank, failure)
            self._fail(failure)

    def _fail(self, failure: RankFailure) -> None:
        with self._changed:
            if self._failure is not None:
                return
            self._failure = failure
            calls, self._calls = self._calls, []
            self._changed.notify_all()
        for call in calls:
            call(failure)
        for peer in self._peers.values():
            resume(peer.process)

    # --- small parts ----------------------------------------------------------------------------------------

    def _hello(self) -> bytes:
        return pack("hello", self.rank, _protocol(), self._secret)

    def _broadcast(self, *parts: bytes) -> None:
        for peer in self._peers.values():
            peer.send(list(parts))

    def _stop(self) -> None:
        self._broadcast(pack("bye"))
        self._end = time.monotonic() + DECISION

    def _over(self, now: float) -> bool:
        """Whether this rank is closed, and those that it waits to join have heard why, or had the time to."""
        told = all(peer.joined or not peer.reachable for peer in self._peers.values())
        return now >= self._end or (told and self._end < math.inf)
