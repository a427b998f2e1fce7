"""A codec: what `compll.compile` returns, and all that the runtime sees of the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from compll import arrays, driver, ir, payload
from compll import backends as b
from compll.check.parameters import choose
from compll.driver import Source, algorithms, find
from compll.errors import BackendError, CompileError, CompileWarning, ParameterError, PayloadError
from compll.items import Item, Preparer, Result, as_scale, integer, length
from compll.knobs import threads as default_threads
from compll.properties import Info
from compll.types import widened, written

__all__ = [
    "BackendError",
    "Codec",
    "CompileError",
    "CompileWarning",
    "Info",
    "Item",
    "ParameterError",
    "PayloadError",
    "Result",
    "algorithms",
    "compile",
    "find",
]

Operation = Literal["encode", "decode", "decode_add", "hop"]


def compile(  # noqa: A001 - the API's name, as in re.compile
    source: Source, /, backend: str = "auto", *, error_feedback: bool = False, **params: float | bool
) -> Codec:
    """Make a codec from a `.pse` program; warns (CompileWarning) of one that hardly means what it says.

    Args:
        source: the name of a shipped algorithm; a path (or a string that ends in `.pse`) of a file with
            both functions; or a pair of paths, one with Encode and one with Decode.
        backend: `auto` (`cpp` if there is a compiler, else `numba`), `cpp`, `numba`, `interp`, `cuda` (for
            arrays on a GPU) or `cudasim` (its kernels, on the CPU).
        error_feedback: add a residual: what a payload loses is added to the next gradient.
        params: values of the program's hyper-parameters.

    Raises:
        CompileError: the program is wrong; all errors at once.
        ParameterError: an unknown algorithm or parameter, or a value that does not fit.
        BackendError: the backend cannot be used here.

    """
    program = driver.load(find(source), params, error_feedback=error_feedback)
    return Codec(program, driver.build(program.checked, backend))


class Codec:
    """A compiled compressor.  Immutable: its methods may be called from several threads at once."""

    def __init__(self, program: driver.Program, library: b.Library) -> None:
        """Made by `compile`."""
        self._program, self._library = program, library
        self._use(replace(program.info, launches=library.launches), program.checked.values)

    def _use(self, info: Info, values: b.Values) -> None:
        self.info, self._values = info, values
        self._prepare = Preparer(self._program, values, arrays.device_of(self._library.backend))

    def __repr__(self) -> str:
        """Show name, parameters and backend."""
        values = ", ".join(f"{k}={written(v)}" for k, v in self._values.items())
        return f"<Codec {self.info.name}({values}) on {self._library.backend}>"

    @property
    def backend(self) -> str:
        """The backend that runs it."""
        return self._library.backend

    # --- sizes, states, parameters ----------------------------------------------------------------

    def max_bytes(self, n: int) -> int:
        """Return the most bytes that a payload of n elements has; exactly so many if `info.exact_size`."""
        return self._prepare.max_bytes(n)

    def new_state(self, n: int, like: Any = None) -> dict[str, Any]:
        """Return the zero state for n elements: name -> float32[n], of the array type of `like`."""
        n = length(n)
        zeros = {name: arrays.zeros(n, self._prepare.device) for name in self._program.encode.states}
        if like is None:
            return dict(zeros)
        wrap = self._prepare.view(like, "like", *arrays.GRADIENT)[1]
        return {name: wrap(z) for name, z in zeros.items()}

    def with_params(self, /, **params: float | bool) -> Codec:
        """Return this codec with other values of run-time parameters; nothing is compiled.

        Raises:
            ParameterError: a static parameter, an unknown name, or a value that does not fit.

        """
        for p in self._program.checked.params:
            if p.static and p.name in params:
                raise ParameterError(
                    f"'{p.name}' is static: kernels are specialised to it; use compile(..., {p.name}=...)"
                )
        values = choose(self.info.name, self._program.checked.params, {**self._values, **params})
        other = Codec(self._program, self._library)
        infos = {name: replace(p, value=values[name]) for name, p in self.info.params.items()}
        other._use(replace(self.info, params=infos), values)
        return other

    # --- operations -------------------------------------------------------------------------------

    def encode(
        self,
        grad: Any,
        seed: int | None = None,
        *,
        shared_seed: int | None = None,
        state: Mapping[str, Any] | None = None,
        new_state: Mapping[str, Any] | None = None,
        out: Any = None,
        threads: int | None = None,
    ) -> Any:
        """Compress a gradient.

        Args:
            grad: float32[n], or float16 or bfloat16, which are widened where they are read.
            seed: 0..2^64-1; required if `info.random`.
            shared_seed: the shared key's value; defaults to `seed`.
            state: from `new_state(n)`; required if `info.stateful`; updated in place.
            new_state: where to write the new state instead of `state`.
            out: uint8 buffer of at least `max_bytes(n)`.
            threads: how many to use.

        Returns:
            The payload, uint8; a view of `out` if that is given.

        Raises:
            ParameterError: an argument is missing or does not fit; nothing has been written.
            IndexError: the program read a vector outside its range.

        """
        item = Item(grad, out, None, seed, shared_seed, state, new_state)
        return self.batch("encode", [item], threads)[0].value

    def decode(
        self,
        payload: Any,
        n: int,
        *,
        out: Any = None,
        dtype: Any = None,
        shared_seed: int | None = None,
    ) -> Any:
        """Return the n elements of a payload, or write them to `out`.

        Args:
            payload: uint8, as `encode` returned it.
            n: how many elements the gradient had.
            out: float32[n], float16[n] or bfloat16[n].
            dtype: without `out`, the type of the result; float32 if none is given.
            shared_seed: as it was in encode; required if `info.keyed`.

        Raises:
            PayloadError: these bytes are no payload of this codec for n elements.
            ParameterError: an argument does not fit.

        """
        if out is None:
            kind = arrays.element("float32" if dtype is None else dtype)
            made = arrays.empty(length(n), self._prepare.device, kind)
            out = self._prepare.view(payload, "payload", "uint8")[1](made)
        elif dtype is not None:
            raise ParameterError("dtype is that of out where out is given: leave one of them away")
        elif len(out) != n:
            raise ParameterError(f"out has {len(out)} elements, and n is {n}")
        return self.batch("decode", [Item(payload=payload, out=out, shared_seed=shared_seed)])[0].value

    def decode_add(
        self, payload: Any, out: Any, scale: float = 1.0, *, shared_seed: int | None = None
    ) -> Any:
        """Do out[i] = out[i] + (scale * decoded[i]) and return `out`; the sum is rounded to its type."""
        item = Item(payload=payload, out=out, scale=scale, shared_seed=shared_seed)
        return self.batch("decode_add", [item])[0].value

    def hop(
        self,
        payload: Any,
        grad: Any,
        seed: int | None = None,
        *,
        scale: float = 1.0,
        shared_seed: int | None = None,
        state: Mapping[str, Any] | None = None,
        new_state: Mapping[str, Any] | None = None,
        out: Any = None,
    ) -> Any:
        """Return the payload of scale * (grad + decode(payload)): the inner step of a ring.

        Raises:
            ParameterError: this codec has no hop (`info.hop` is False; `info.why["hop"]` says why).

        """
        item = Item(grad, out, payload, seed, shared_seed, state, new_state, scale)
        return self.batch("hop", [item])[0].value

    def batch(self, op: Operation, items: Sequence[Item], threads: int | None = None) -> list[Result]:
        """Run one operation on several gradients in one call.

        encode: grad, seed, shared_seed, state, new_state, out -> payload.
        decode: payload, out.   decode_add: payload, out, scale -> out.
        hop: as encode, and payload, scale.

        Raises:
            ParameterError, PayloadError, IndexError: as the single operations do.  With several items,
            those before the one that failed may have been written.

        """
        threads = default_threads() if threads is None else integer(threads, "threads", 1, 2**15)
        if op not in get_args(Operation):
            raise ParameterError(f"there is no operation {op!r}: {', '.join(get_args(Operation))}")
        if op == "hop" and not self.info.hop:
            raise ParameterError(f"{self.info.name} has no hop: {self.info.why['hop']}")
        if op == "hop" and not self._program.fuses_hop:
            return self._composed_hop(items, threads)
        prepare = {
            "encode": self._prepare.encode,
            "decode": self._prepare.decode,
            "decode_add": self._prepare.decode,
            "hop": self._prepare.hop,
        }[op]
        ready = []
        for at, item in enumerate(items):
            try:
                ready.append(prepare(item))
            except (ParameterError, PayloadError, BackendError) as e:
                raise _of_item(e, at, len(items)) from None
        outcomes = self._library.run(op, [call for call, _ in ready], self._values, threads)
        results = []
        for at, ((call, finish), outcome) in enumerate(zip(ready, outcomes, strict=True)):
            if outcome.status < 0:
                raise _of_item(self._failure(op, call, outcome), at, len(items))
            results.append(Result(finish(outcome.length), outcome.status == b.OK))
        return results

    def _composed_hop(self, items: Sequence[Item], threads: int) -> list[Result]:
        """Do what a hop is defined to be, one operation after the other."""
        totals, encodes = [], []
        for item in items:
            grad, wrap = self._prepare.view(item.grad, "grad", *arrays.GRADIENT)
            totals.append(arrays.empty(len(grad), self._prepare.device))
            encodes.append(replace(item, grad=wrap(totals[-1]), payload=None, scale=1.0))
        decodes = [
            Item(payload=item.payload, out=encode.grad, shared_seed=item.shared_seed)
            for item, encode in zip(items, encodes, strict=True)
        ]
        self.batch("decode", decodes, threads)
        with np.errstate(all="ignore"):
            for item, total in zip(items, totals, strict=True):
                grad = self._prepare.view(item.grad, "grad", *arrays.GRADIENT)[0]
                np.add(widened(grad), total, out=total)
                np.multiply(total, as_scale(item.scale), out=total)
        return self.batch("encode", encodes, threads)

    def _failure(self, op: Operation, call: b.Call, outcome: b.Outcome) -> Exception:
        name = self.info.name
        if call.source is not None:  # if the payload of a hop is wrong, decoding it says what is
            out = arrays.empty(call.n, self._prepare.device)
            decode = b.Call(call.n, out, call.source, 0, call.shared_seed)
            (outcome,) = self._library.run("decode", [decode], self._values, 1)
            if outcome.status < 0:
                return self._failure("decode", decode, outcome)
        if op in ("encode", "hop"):
            return IndexError(
                f"{name}: Encode read a vector outside its range (gradient of {call.n} elements)"
            )
        if outcome.status == b.REFUSED:
            raw, n, values = call.payload, call.n, {**self._values, ir.SHARED_SEED: call.shared_seed}
            return payload.explain_refusal(
                name,
                self._program.decode_of(raw, n),
                arrays.on_host(raw),
                self._prepare.extents_of(raw, n),
                values,
            )
        return PayloadError(f"{name}: Decode read a vector outside its range; the payload is corrupt")


def _of_item(e: Exception, at: int, count: int) -> Exception:
    """Return an error that says which item of a batch it is about; of one item nothing need be said."""
    return e if count == 1 else type(e)(f"item {at} of {count}: {e}")
