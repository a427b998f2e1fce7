"""Runs a rank's schedule, step after step: one compute thread, fed by one queue of events.

    hooks (training thread) --+
                              +--> queue --> compute thread --> transport (its own I/O thread)
    frames (I/O thread) ------+                    |
    synchronize() <---- outcome of the step -------+

A task is ready when the tasks before it are done and, if it reads the gradient, when that is known. Sends
leave at once; of the others those that other ranks wait for run first come, first served, and decodes, which
only this rank waits for, when there are none of these. Frames of the next step may arrive early (a rank is at
most one step ahead): they start what they can, and nothing of a step is mixed with another's.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from casync.backlog import Backlog
from casync.collectives import Collectives, Request
from casync.control import RankFailure, Wait
from casync.events import Arrived, Called, Close, Event, Outcome, Ready, Reduced, Replace, Stop
from casync.frames import ABSENT, NOT_FINITE, FrameError, Header, verify
from casync.metrics import Meter
from casync.payload import Payload, Sum
from casync.primitives import Decode, Encode, Merge, Recv, Reduce, Send, Task
from casync.program import Program
from casync.step import Step
from compll.codec import PayloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casync.channels import Channel, Channels
    from casync.compute import Compute
    from casync.control import Control
    from casync.rows import Values
    from casync.trace import Lane

log = logging.getLogger("casync")

LAST = 1 << 32
"""The order of the wait for an engine, on which no message depends: behind those for messages."""


class Executor:
    """Synchronizes gradients by a schedule. `submit` and `synchronize` belong to the training thread."""

    def __init__(
        self,
        control: Control,
        channels: Channels,
        tasks: Sequence[Task],
        compute: Compute,
        lane: Lane | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        """`collectives`: of a schedule with all-reduces; closed with the executor."""
        self._control = control
        self._collectives = collectives
        self._compute = compute
        self._program = Program(tasks, compute.partitions)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome | None] = SimpleQueue()
        self._ready = Backlog()
        self._running: tuple[Step, Task] | None = None
        self._steps: dict[int, Step] = {}
        self._next = 0  # the first step that is not finished; compute thread only
        self._current = 0  # the step that is being filled; training thread only
        self.meter = Meter(compute, lane)
        self._told: Callable[[Outcome | None], None] | None = None  # who is to be told if the job fails
        self.loss_scale = 1.0
        """What this step's gradients are multiplied by, the same on all ranks; training thread only."""
        self.first_step = 0
        """Added to a step's number for seeds and reports, which count from the run's begin."""
        self._memory = compute.memory
        self._memory.start(self._bound, lambda call: self._events.put(Called(call)))
        if self._memory.arrivals is not None:
            channels.receive_into(self._memory.arrivals)
        self._channel: Channel = channels.open(self._arrived, control)
        self._memory.direct = self._channel.device
        self._thread = threading.Thread(target=self._run, name=f"casync-compute-{control.rank}", daemon=True)
        self._thread.start()
        failed = weakref.WeakMethod(self._failed)  # the job outlives executors
        control.on_failure(lambda failure: (call := failed()) and call(failure))

    # The training thread

    def submit(self, gradient: str, values: Values) -> None:
        """Hand over a gradient, flat and contiguous; its memory is ours until `synchronize` returns."""
        self.meter.submitted()
        event = Ready(self._current, gradient, values, self.loss_scale)
        self._memory.handed_over(lambda: self._events.put(event))

    def synchronize(self) -> Outcome:
        """Wait until all gradients of this step are synchronized; raise the job's RankFailure if it fails."""
        self.finish(self._outcomes.put)
        outcome = self._outcomes.get()
        if outcome is None:
            self._control.check()
            raise RuntimeError("the executor was closed while a step was being synchronized")
        return outcome

    def finish(self, done: Callable[[Outcome | None], None]) -> None:
        """End the step without waiting; `done(outcome)` is called in another thread.

        `done(None)`: the job has failed, or the executor was closed; that may follow a call with an outcome.
        """
        self._told = done
        self._control.check()
        self.meter.closed(self.first_step + self._current)
        event = Close(self._current, self.loss_scale, done)
        self._memory.handed_over(lambda: self._events.put(event))
        self._current += 1

    def replace(self, tasks: Sequence[Task], compute: Compute) -> None:
        """Run another schedule from the coming step on; returns when its frames may come. Between steps."""
        self._control.check()
        self._events.put(Replace(Program(tasks, compute.partitions), compute))
        if self._outcomes.get() is None:
            self._control.check()

    @property
    def step(self) -> int:
        """The number of steps that this executor has synchronized."""
        return self._current

    def close(self) -> None:
        """End the compute thread. Idempotent."""
        self._stop()
        if self._thread is not threading.current_thread():
            self._thread.join()
        if self._collectives is not None:
            self._collectives.close()
        self._channel.close()
        self._memory.close()

    # Other threads

    def _arrived(self, peer: int, header: Header, body: memoryview) -> None:
        self._events.put(Arrived(peer, header, body))

    def _failed(self, failure: RankFailure) -> None:  # noqa: ARG002  (told to all by control.check)
        self._stop()

    def _stop(self) -> None:
        self._events.put(Stop())
        self._outcomes.put(None)  # for `replace`
        if self._told is not None:
            self._told(None)

    # The compute thread

    def _run(self) -> None:
        """Work until stopped; whatever is raised fails the job, naming the rank that is to blame."""
        try:
            with np.errstate(all="ignore"), self._memory.here():  # infinities are data here
                self._loop()
        except RankFailure as failure:
            self._control.abort(failure)
        except PayloadError as error:
            source = self._source(self._running[1]) if self._running else None
            rank = source.peer if isinstance(source, Recv) else self._control.rank
            self._blame(rank, f"its payload cannot be decoded: {error}")
        except BaseException as error:
            log.exception("casync: rank %d failed", self._control.rank)
            self._blame(self._control.rank, f"{type(error).__name__}: {error}")

    def _blame(self, rank: int, reason: str) -> None:
        label = number = None
        if self._running is not None:
            step, task = self._running
            label, number = self._label(task), self._number(step)
        self._control.abort(RankFailure(rank, label, number, reason))

    def _loop(self) -> None:
        stopping = False
        while True:
            if self._ready and (stopping or self._events.empty()):  # an event may bring what goes first
                self._running = step, task = self._ready.take()
                self._control.waits(None)  # a rank that computes waits for nobody, however long it takes
                self._execute(step, task)
                continue
            self._running = None
            if stopping:
                return
            if not self._ready and self._events.empty():
                self._control.waits(self._waiting_for())
            event = self._events.get()
            stopping = isinstance(event, Stop)
            self._handle(event)

    def _label(self, task: Task) -> str:
        return self._compute.partitions[task.partition].label

    def _source(self, task: Task) -> Task | None:
        """The task that made the payload which `task` reads."""
        payload = task.received if isinstance(task, Encode) else getattr(task, "payload", None)
        return None if payload is None else self._program.tasks[payload]

    def _number(self, step: Step) -> int:
        return self.first_step + step.number

    def _step(self, number: int) -> Step:
        if number not in self._steps:
            program = self._program
            self._steps[number] = Step(
                number,
                list(program.needs),
                list(program.gradients_needed),
                dict.fromkeys(program.awaited),
                len(program.tasks),
            )
        return self._steps[number]

    def _handle(self, event: Event) -> None:
        match event:
            case Ready(number, gradient, values, loss_scale):
                step = self._step(number)
                step.loss_scale = loss_scale
                if loss_scale != 1:
                    self._compute.unscale(gradient, values, loss_scale)
                self._know(step, gradient, values)
            case Close(number, loss_scale, done):
                step = self._step(number)
                step.loss_scale, step.done = loss_scale, done
                for gradient in self._program.partitions_of:
                    if gradient not in step.gradients:
                        self._know(step, gradient, None)
                if step.left == 0:
                    self._finish(step, done)
            case Replace(program, compute):
                self._program, self._compute = program, compute
                self.meter.lay_out(compute)
                self._outcomes.put(Outcome({}, True))
            case Called(call):
                call()
            case Arrived(peer, header, body):
                self._receive(peer, header, body)
            case Reduced(number, task, values, begin):
                step, reduced = self._steps[number], self._program.tasks[task]
                del step.missing[task]
                self.meter.reduced(self._number(step), reduced, begin, values.nbytes)
                parts = self._compute.terms.unpack(reduced.partition, values)
                step.sums[reduced.partition] = Sum(parts, whole=values)
                self._done(step, reduced)
            case _:
                pass

    def _know(self, step: Step, gradient: str, values: Values | None) -> None:
        step.gradients[gradient] = step.results[gradient] = values
        for partition in self._program.partitions_of[gradient]:
            step.gradients_needed[partition] -= 1
            if step.gradients_needed[partition] == 0:
                for task in self._program.gradient_tasks[partition]:
                    self._advance(step, task)

    def _receive(self, peer: int, header: Header, body: memoryview) -> None:
        task = self._program.recvs.get((peer, header.task))
        received = None if task is None else self._program.tasks[task]
        label = None if received is None else self._label(received)
        number = self.first_step + header.step
        if task is None or header.step not in (self._next, self._next + 1):
            at = self.first_step + self._next
            raise RankFailure(peer, label, number, f"it sent message {header.task}, unexpected at step {at}")
        assert isinstance(received, Recv), "only these are awaited"
        step = self._step(header.step)
        if task not in step.missing:
            raise RankFailure(peer, label, number, f"it sent message {header.task} twice")
        try:
            verify(header, body)
        except FrameError as error:
            raise RankFailure(peer, label, number, str(error)) from None
        del step.missing[task]
        self.meter.received(number, received, body.nbytes)
        step.payloads[task] = Payload(
            np.frombuffer(body, np.uint8) if isinstance(body, memoryview) else body,
            bool(header.flags & ABSENT),
            not header.flags & NOT_FINITE,
            exact=received.exact,
            down=received.down,
        )
        self._advance(step, task)

    def _advance(self, step: Step, number: int) -> None:
        """One of the things that a task needs is there; if it was the last, the task is ready."""
        step.needs[number] -= 1
        if step.needs[number]:
            return
        task = self._program.tasks[number]
        match task:
            case Send():
                self._send(step, task)
                self._done(step, task)
            case Recv():
                self._done(step, task)
            case _:
                self._ready.add(step, task)

    def _execute(self, step: Step, task: Task) -> None:
        if isinstance(task, Reduce):
            self._reduce(step, task)
            return
        begin = time.perf_counter()
        compute, number = self._compute, self._number(step)

        def ran() -> None:
            self.meter.ran(number, task, begin)
            self._done(step, task)

        match task:
            case Encode():
                received = None if task.received is None else step.payloads[task.received]
                total = step.sums.pop(task.partition) if task.of_sum else None

                def encoded(payload: Payload) -> None:
                    step.payloads[task.id] = payload
                    ran()

                readers = self._program.readers[task.id]
                compute.encode(task, number, step.gradients, received, total, readers, encoded)
            case Merge():
                term = None if task.payload is None else step.payloads[task.payload]
                step.sums[task.partition] = compute.merge(
                    task, number, step.gradients, term, step.sums.get(task.partition)
                )
                if term is not None and term.lease is not None:
                    term.lease.release()
                ran()
            case Decode():

                def settled(fits: bool) -> None:
                    step.finite = step.finite and fits
                    ran()

                def decoded(finite: bool) -> None:
                    step.finite = step.finite and finite
                    compute.settle(task, step.results, step.loss_scale, settled)

                if task.payload is None:
                    compute.finish(task, step.sums.pop(task.partition), step.results, decoded)
                    return
                payload = step.payloads[task.payload]
                compute.decode(task, number, payload, step.results)
                if payload.lease is not None:
                    payload.lease.release()
                decoded(payload.finite)

    def _bound(self, call: Callable[[], object]) -> Callable[[], object]:
        """A call that waits for a GPU: made later, it is of the task that runs now."""
        running = self._running

        def later() -> object:
            self._running = running
            return call()

        return later

    def _reduce(self, step: Step, task: Reduce) -> None:
        """Give the engine's thread this rank's term; `Reduced` tells of the sum."""
        assert self._collectives is not None
        values = self._compute.terms.pack(task.partition, step.gradients)

        def done(begin: float) -> None:
            self._events.put(Reduced(step.number, task.id, values, begin))

        request = Request(values, self._number(step), self._label(task), done)
        self._collectives.submit(self._program.reduces, task.id, request)

    def _send(self, step: Step, task: Send) -> None:
        payload = step.payloads[task.payload]
        flags = (ABSENT if payload.absent else 0) | (0 if payload.finite else NOT_FINITE)
        done = payload.lease.release if payload.lease is not None else None
        raw = self._compute.raw_bytes(task.partition, payload)
        self.meter.sent(self._number(step), task, payload.body.nbytes, raw)
        self._channel.send(task.peer, step.number, task.message, flags, payload.body, done)

    def _done(self, step: Step, task: Task) -> None:
        self.meter.tasks += 1
        step.left -= 1
        for other in self._program.behind[task.id]:
            self._advance(step, other)
        if step.left == 0 and step.done is not None:
            self._finish(step, step.done)

    def _finish(self, step: Step, done: Callable[[Outcome | None], None]) -> None:
        """Every partition's final flag is known, the same on all ranks: take the new state, or drop it."""
        if step.finite:
            self._compute.feedback.commit()
        else:
            self._compute.feedback.drop()
        self.meter.finished(self._number(step), step.finite)
        del self._steps[step.number]
        self._next = step.number + 1
        done(Outcome(step.results, step.finite))

    def _waiting_for(self) -> Wait | None:
        """The first thing that the training thread waits for; nobody while the backward pass still runs.

        All ranks of an all-reduce wait for the one that has not come, whichever it is: each says that it
        waits for the next one, so that the chain of waits leads to that rank.
        """
        step = self._steps.get(self._next)
        if step is None or step.done is None or not step.missing:
            return None
        task = self._program.tasks[next(iter(step.missing))]
        peer, order = (self._control.rank + 1) % self._control.size, LAST
        if isinstance(task, Recv):
            peer, order = task.peer, task.order
        return Wait(peer, self._label(task), self._number(step), order)
