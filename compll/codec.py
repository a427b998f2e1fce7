"""A codec: what `compll.compile` returns, and all that the runtime sees of the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compll import arrays, driver
from compll import backends as b
from compll.check.parameters import choose
from compll.driver import Source, algorithms, find
from compll.errors import BackendError, CompileError, CompileWarning, ParameterError, PayloadError
from compll.items import Item, Result, integer, length
from compll.knobs import threads as default_threads
from compll.payload import extents, most_counts
from compll.properties import Info
from compll.runner import OPERATIONS, Awaited, Operation, Runner
from compll.types import written

__all__ = [
    "Awaited",
    "BackendError",
    "Codec",
    "CompileError",
    "CompileWarning",
    "Info",
    "Item",
    "Operation",
    "ParameterError",
    "PayloadError",
    "Result",
    "algorithms",
    "compile",
    "find",
]


def compile(  # noqa: A001 - the API's name, as in re.compile
    source: Source, /, backend: str = "auto", *, error_feedback: bool = False, **params: float | bool
) -> Codec:
    """Make a codec from a `.pse` program; warns (CompileWarning) of one that hardly means what it says.

    Args:
        source: the name of a shipped algorithm; a path (or a string that ends in `.pse`) of a file with
            both functions; or a pair of paths, one with Encode and one with Decode.
        backend: `auto` (by the array that each call is given: on a GPU `cuda`, built when the first comes,
            otherwise `cpp` if there is a compiler, else `numba`), `cpp`, `numba`, `interp`, `cuda` (for
            arrays on a GPU alone) or `cudasim` (its kernels, on the CPU).
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
    """A compiled compressor.  Immutable: its methods may be called from several threads at once.

    On a GPU calls are put in the order of the current stream of the caller's library, and a call waits only
    where its result must be known on the host:
    - `encode` and `hop` that are given `out` do not wait: they return `out` itself, and the payload's length
      stays on the device, where `decode` finds it.  `length(out)` waits for it, `result(out)` also for what
      went wrong.
    - Without `out` they wait once if the payload's length, or an error, depends on the data.
    - `decode` and `decode_add` wait for whether the payload was refused, unless `wait=False`.
    - While a graph is captured nothing waits, and only launches are recorded; seeds, parameters and scale are
      constants of the graph.
    """

    def __init__(self, program: driver.Program, library: driver.Libraries) -> None:
        """Made by `compile`."""
        self._program, self._library = program, library
        self._use(replace(program.info, launches=library.launches), program.checked.values)

    def _use(self, info: Info, values: b.Values) -> None:
        self.info, self._values = info, values
        self._runner = Runner(self._program, self._library, values)

    def __repr__(self) -> str:
        """Show name, parameters and backend."""
        values = ", ".join(f"{k}={written(v)}" for k, v in self._values.items())
        return f"<Codec {self.info.name}({values}) on {self._library.backend}>"

    @property
    def backend(self) -> str:
        """The backend that runs it; of `auto`, that for arrays in host memory."""
        return self._library.backend

    # --- sizes, states, parameters ----------------------------------------------------------------

    def max_bytes(self, n: int) -> int:
        """Return the most bytes that a payload of n elements has; exactly so many if `info.exact_size`."""
        return self._runner.first.max_bytes(n)

    def fields(self, n: int) -> tuple[tuple[str, int, int | None], ...]:
        """Return type, offset in bytes and number of elements (None: a scalar) of each field of a payload.

        That of n elements; of a codec whose `info.exact_size` is False, the longest that it can be.
        """
        encode, n = self._program.encode, length(n)
        counts = most_counts(encode, n, self._values)
        places = extents(encode.layout, n, self._values, counts)
        return tuple((str(place.elem), place.offset, place.count) for place in places)

    def new_state(self, n: int, like: Any = None) -> dict[str, Any]:
        """Return the zero state for n elements: name -> float32[n], of `like`'s type and place."""
        n, prepare = length(n), self._runner.preparer(like)
        with arrays.beside(like):
            zeros = {name: arrays.zeros(n, prepare.device) for name in self._program.encode.states}
            if like is None:
                return dict(zeros)
            wrap = arrays.view(like, "like", arrays.GRADIENT, prepare.device)[1]
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
            The payload, uint8; a view of `out` if that is given, and on a GPU `out` itself: see `Codec`.

        Raises:
            ParameterError: an argument is missing or does not fit; nothing has been written.
            IndexError: the program read a vector outside its range.
            BackendError: arrays lie apart, or what must be waited for is asked for while a graph is captured.

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
        wait: bool = True,
    ) -> Any:
        """Return the n elements of a payload, or write them to `out`.

        Args:
            payload: uint8, as `encode` returned it.
            n: how many elements the gradient had.
            out: float32[n], float16[n] or bfloat16[n].
            dtype: without `out`, the type of the result; float32 if none is given.
            shared_seed: as it was in encode; required if `info.keyed`.
            wait: on a GPU, whether to wait and raise PayloadError; if not, `result` of what is returned does.

        Raises:
            PayloadError: these bytes are no payload of this codec for n elements.
            ParameterError: an argument does not fit.

        """
        if out is None:
            kind, prepare = (
                arrays.element("float32" if dtype is None else dtype),
                self._runner.preparer(payload),
            )
            with arrays.beside(payload):
                made = arrays.empty(length(n), prepare.device, kind)
                out = arrays.view(payload, "payload", arrays.PAYLOAD, prepare.device)[1](made)
        elif dtype is not None:
            raise ParameterError("dtype is that of out where out is given: leave one of them away")
        elif len(out) != n:
            raise ParameterError(f"out has {len(out)} elements, and n is {n}")
        item = Item(None, out, payload, None, shared_seed)
        return self.batch("decode", [item], wait=wait)[0].value

    def decode_add(
        self,
        payload: Any,
        out: Any,
        scale: float = 1.0,
        *,
        shared_seed: int | None = None,
        wait: bool = True,
    ) -> Any:
        """Do out[i] = out[i] + (scale * decoded[i]) and return `out`; the sum is rounded to its type.

        `wait` is as for decode.
        """
        item = Item(None, out, payload, None, shared_seed, None, None, scale)
        return self.batch("decode_add", [item], wait=wait)[0].value

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

    def batch(
        self, op: Operation, items: Sequence[Item], threads: int | None = None, *, wait: bool = True
    ) -> list[Result]:
        """Run one operation on several gradients in one call.

        encode: grad, seed, shared_seed, state, new_state, out -> payload.
        decode: payload, out.   decode_add: payload, out, scale -> out.
        hop: as encode, and payload, scale.
        All items lie in one place; `wait` is as for decode.

        Raises:
            ParameterError, PayloadError, IndexError: as the single operations do, of the first item that
            failed.  After a PayloadError or an IndexError the outputs of all others may have been written.

        """
        threads = default_threads() if threads is None else integer(threads, "threads", 1, 2**15)
        if op not in OPERATIONS:
            raise ParameterError(f"there is no operation {op!r}: {', '.join(OPERATIONS)}")
        if op == "hop" and not self.info.hop:
            raise ParameterError(f"{self.info.name} has no hop: {self.info.why['hop']}")
        return self._runner.batch(op, items, threads, wait=wait)

    def length(self, payload: Any) -> int:
        """Return a payload's length: that of the array, or of what `encode` and `hop` put into it on a GPU.

        For the latter it is given the very array that they returned, and waits for the current stream.  After
        a call that was captured it tells of the graph's last replay.

        Raises:
            IndexError, PayloadError: the call failed.

        """
        if payload in self._library.pending:
            return self._runner.wait_for(payload)[1].length
        return len(payload)

    def result(self, out: Any) -> Result:
        """Wait for the call on a GPU that wrote `out` without waiting; return what it would have returned.

        Args:
            out: the very array that the call returned.

        Raises:
            IndexError, PayloadError: the call failed.
            ParameterError: no call of this codec on a GPU has written it.

        """
        if out not in self._library.pending:
            raise ParameterError("out is no array that a call of this codec on a GPU has returned")
        return self._runner.result(out, *self._runner.wait_for(out))

    def awaited(self, outs: Sequence[Any]) -> Awaited:
        """Return where calls on a GPU that were not waited for leave their results, for several at once.

        Nothing waits: the caller copies the records to the host after the calls, when it suits him, and asks
        `results` of them.

        Args:
            outs: the very arrays that calls returned, or were given as `out`.

        Raises:
            ParameterError: no call of this codec on a GPU has written one of them.

        """
        return Awaited(self._runner, outs)
