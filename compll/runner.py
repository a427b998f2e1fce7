"""Runs a batch: in host memory, or on a GPU, where most calls are launched and not waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from compll import arrays, ir, payload
from compll import backends as b
from compll.driver import Libraries, Program
from compll.errors import BackendError, ParameterError, PayloadError
from compll.items import Goal, Item, Preparer, Result, as_scale
from compll.types import Array, widened

if TYPE_CHECKING:
    from typing import Any

    from compll.backends.launches import LaunchLibrary
    from compll.pending import Entry

Operation = Literal["encode", "decode", "decode_add", "hop"]
OPERATIONS = get_args(Operation)


class Runner:
    """Runs a program with given values of its parameters, by the backend of the place where arrays lie."""

    def __init__(self, program: Program, library: Libraries, values: b.Values) -> None:
        """Begin with no sizes known."""
        self.program, self.library, self.values, self.info = program, library, values, program.info
        self.places = {place: Preparer(program, values, place, library.pending) for place in library.backends}
        self.first = self.places[library.place]

    def preparer(self, x: Any) -> Preparer:
        """Return what prepares calls where an array lies; that of the first backend, which refuses others."""
        if len(self.places) == 1:
            return self.first
        place = arrays.place(x)
        if place == arrays.GPU and place in self.places:
            self.library.of(place=place)  # imports CuPy, by which all arrays there are viewed
        return self.places.get(place, self.first)

    def batch(self, op: Operation, items: Sequence[Item], threads: int, *, wait: bool) -> list[Result]:
        """Run one operation on several gradients: see `Codec.batch`."""
        if not items:
            return []
        first = items[0].grad if op in ("encode", "hop") else items[0].out
        prepare = self.preparer(first)
        if prepare.device == arrays.HOST:
            return self._run(prepare, op, items, threads)
        with arrays.beside(first):
            return self._start(prepare, op, items, wait=wait)

    def _ready(
        self, prepare: Preparer, op: Operation, items: Sequence[Item]
    ) -> tuple[list[b.Call], list[Goal]]:
        """Check and prepare every item."""
        make = prepare.of[op]
        calls: list[b.Call] = []
        goals: list[Goal] = []
        try:
            for item in items:
                call, goal = make(item)
                calls.append(call)
                goals.append(goal)
        except (ParameterError, PayloadError, BackendError) as e:
            raise _of_item(e, len(calls), len(items)) from None
        return calls, goals

    def _run(self, prepare: Preparer, op: Operation, items: Sequence[Item], threads: int) -> list[Result]:
        """Run an operation in host memory."""
        if op == "hop" and not self.program.fuses_hop:
            return self._composed_hop(prepare, items, threads)
        calls, goals = self._ready(prepare, op, items)
        outcomes = self.library.run(op, calls, self.values, threads, prepare.device)
        return self._results(prepare, op, calls, goals, outcomes)

    def _results(
        self,
        prepare: Preparer,
        op: Operation,
        calls: Sequence[b.Call],
        goals: Sequence[Goal],
        outcomes: Sequence[b.Outcome],
    ) -> list[Result]:
        results: list[Result] = []
        for at, (status, length) in enumerate(outcomes):  # one for each call
            if status < 0:
                raise _of_item(self._failure(prepare, op, calls[at], status), at, len(calls))
            results.append(Result(prepare.finish(calls[at], goals[at], length), status == b.OK))
        return results

    # --- on a GPU ---------------------------------------------------------------------------------

    def _start(self, prepare: Preparer, op: Operation, items: Sequence[Item], *, wait: bool) -> list[Result]:
        """Launch an operation on a GPU; wait, if what became of it must be known now."""
        if op == "hop" and not self.program.fuses_hop:
            return self._composed_hop(prepare, items, 1)
        capturing, encodes = arrays.is_capturing(), op in ("encode", "hop")
        if encodes:
            wait = self._is_unsure(op) and any(item.out is None for item in items)
        if capturing and wait and encodes and not self.info.exact_size:
            raise BackendError(
                f"the length of a payload of {self.info.name} depends on the data, and while a graph is "
                "captured nothing can wait for it: give out="
            )
        calls, goals = self._ready(prepare, op, items)
        started = self.library.start(op, calls, self.values, keep=capturing)
        if wait and not capturing:
            runs = {id(run): run.outcomes() for run, _ in started}
            results = self._results(prepare, op, calls, goals, [runs[id(run)][at] for run, at in started])
        else:
            made = zip(calls, goals, strict=True)
            results = [Result(prepare.finish(call, goal, call.payload.nbytes), None) for call, goal in made]
        for item, result, call, (run, at) in zip(items, results, calls, started, strict=True):
            if item.out is not None or result.finite is None:
                self.library.pending.enter(result.value, op, call.n, run, at, captured=capturing)
        return results

    def _is_unsure(self, op: Operation) -> bool:
        """Whether the length of a payload, or an error, depends on what is encoded."""
        library = cast("LaunchLibrary", self.library.of(place=arrays.GPU))
        return not self.info.exact_size or op in library.fallible

    def wait_for(self, out: Any) -> tuple[Entry, b.Outcome]:
        """Wait for the last call that wrote an array; raise its error."""
        entry = self.library.pending.entries[id(out)]
        with arrays.beside(out):
            outcome = entry.wait()
        self._judge(entry, outcome)
        return entry, outcome

    def result(self, out: Any, entry: Entry, outcome: b.Outcome) -> Result:
        """Return what a call would have returned had it waited; raise its error."""
        self._judge(entry, outcome)
        value = out[: outcome.length] if entry.op in ("encode", "hop") else out
        return Result(value, outcome.status == b.OK)

    def _judge(self, entry: Entry, outcome: b.Outcome) -> None:
        if outcome.status >= 0:
            return
        if entry.op == "encode" or (entry.op == "hop" and outcome.status == b.OUT_OF_RANGE):
            raise self._out_of_range(entry.n)
        raise PayloadError(
            f"{self.info.name}: the payload of this {entry.op} is none of {entry.n} elements, or corrupt; "
            "a decode that waits says what is wrong with it"
        )

    def _composed_hop(self, prepare: Preparer, items: Sequence[Item], threads: int) -> list[Result]:
        """Do what a hop is defined to be, one operation after the other."""
        totals, encodes = [], []
        for item in items:
            grad, wrap = arrays.view(item.grad, "grad", arrays.GRADIENT, prepare.device)
            totals.append(arrays.empty(len(grad), prepare.device))
            encodes.append(item._replace(grad=wrap(totals[-1]), payload=None, scale=1.0))
        decodes = [
            Item(payload=item.payload, out=encode.grad, shared_seed=item.shared_seed)
            for item, encode in zip(items, encodes, strict=True)
        ]
        self.batch("decode", decodes, threads, wait=True)
        with np.errstate(all="ignore"):
            for item, total in zip(items, totals, strict=True):
                grad = arrays.view(item.grad, "grad", arrays.GRADIENT, prepare.device)[0]
                np.add(widened(grad), total, out=total)
                np.multiply(total, as_scale(item.scale), out=total)
        return self.batch("encode", encodes, threads, wait=True)

    def _out_of_range(self, n: int) -> IndexError:
        return IndexError(
            f"{self.info.name}: Encode read a vector outside its range (gradient of {n} elements)"
        )

    def _failure(self, prepare: Preparer, op: Operation, call: b.Call, status: int) -> Exception:
        name = self.info.name
        if call.source is not None:  # if the payload of a hop is wrong, decoding it says what is
            out = arrays.empty(call.n, prepare.device)
            decode = b.Call(call.n, out, call.source, 0, call.shared_seed)
            (decoded,) = self.library.run("decode", [decode], self.values, 1, prepare.device)
            if decoded.status < 0:
                return self._failure(prepare, "decode", decode, decoded.status)
        if op in ("encode", "hop"):
            return self._out_of_range(call.n)
        raw, n = call.payload, call.n
        try:
            width = prepare.read_width(raw, n)  # this and the length may have been left to the kernels
            if not call.padded:
                prepare.check(raw, n, width)
        except PayloadError as e:
            return e
        if status == b.REFUSED:
            return payload.explain_refusal(
                name,
                self.program.decode_for(width),
                arrays.on_host(raw),
                prepare.extents_of(raw, n, width),
                {**self.values, ir.SHARED_SEED: call.shared_seed},
            )
        return PayloadError(f"{name}: Decode read a vector outside its range; the payload is corrupt")


def _of_item(e: Exception, at: int, count: int) -> Exception:
    """Return an error that says which item of a batch it is about; of one item nothing need be said."""
    return e if count == 1 else type(e)(f"item {at} of {count}: {e}")


class Awaited:
    """What calls on a GPU that were not waited for have left there: for who copies it to the host himself.

    records: arrays of uint8 on the GPU, written when the calls have run; one for each batch.
    """

    def __init__(self, runner: Runner, outs: Sequence[Any]) -> None:
        """Find the last call that wrote each of these very arrays."""
        self._runner, self._outs = runner, outs
        pending = runner.library.pending
        if any(out not in pending for out in outs):
            raise ParameterError("outs has an array that no call of this codec on a GPU has returned")
        self._entries = [pending.entries[id(out)] for out in outs]
        self._started = list({id(entry.started): entry.started for entry in self._entries}.values())
        self.records = tuple(started.items for started in self._started)

    def results(self, copies: Sequence[Array]) -> list[Result]:
        """Return for each array what its call would have returned had it waited.

        Args:
            copies: NumPy arrays, the records' contents.

        Raises:
            IndexError, PayloadError: of the first call that failed.

        """
        told = {id(started): started.read(copy) for started, copy in zip(self._started, copies, strict=True)}
        return [
            self._runner.result(out, entry, told[id(entry.started)][entry.at])
            for out, entry in zip(self._outs, self._entries, strict=True)
        ]
