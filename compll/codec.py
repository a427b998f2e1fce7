"""A codec: what `compll.compile` returns, and all that the runtime sees of the compiler."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from compll import arrays, driver, ir, payload
from compll import backends as b
from compll.check.parameters import choose
from compll.driver import Source, algorithms, find
from compll.errors import BackendError, CompileError, CompileWarning, ParameterError, PayloadError
from compll.knobs import threads as default_threads
from compll.properties import Info
from compll.types import Array, widened, written

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


@dataclass(frozen=True, slots=True)
class Item:
    """One gradient of a batch; which fields an operation uses: see `Codec.batch`."""

    grad: Any = None
    out: Any = None
    payload: Any = None
    seed: int | None = None
    shared_seed: int | None = None
    state: Mapping[str, Any] | None = None
    new_state: Mapping[str, Any] | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an item: the payload (encode, hop) or the output, and whether the input was finite."""

    value: Any
    finite: bool


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
        self._values = program.checked.values
        self._places: dict[int, tuple[payload.Extent, ...]] = {}
        self._device = arrays.device_of(library.backend)
        self.info: Info = program.info

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
        return payload.total_bytes(self._extents(n))

    def new_state(self, n: int, like: Any = None) -> dict[str, Any]:
        """Return the zero state for n elements: name -> float32[n], of the array type of `like`."""
        n = _length(n)
        zeros = {name: arrays.zeros(n, self._device) for name in self._program.encode.states}
        if like is None:
            return dict(zeros)
        wrap = self._view(like, "like", *arrays.GRADIENT)[1]
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
        other._values = values
        infos = {name: replace(p, value=values[name]) for name, p in self.info.params.items()}
        other.info = replace(self.info, params=infos)
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
            made = arrays.empty(
                _length(n), self._device, arrays.element("float32" if dtype is None else dtype)
            )
            out = self._view(payload, "payload", "uint8")[1](made)
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
        threads = default_threads() if threads is None else _integer(threads, "threads", 1, 2**15)
        if op not in get_args(Operation):
            raise ParameterError(f"there is no operation {op!r}: {', '.join(get_args(Operation))}")
        if op == "hop":
            return self._hop(items, threads)
        prepare = {
            "encode": self._prepare_encode,
            "decode": self._prepare_decode,
            "decode_add": self._prepare_decode,
        }
        ready = [prepare[op](item) for item in items]
        outcomes = self._library.run(op, [call for call, _ in ready], self._values, threads)
        results = []
        for (call, finish), outcome in zip(ready, outcomes, strict=True):
            if outcome.status < 0:
                raise self._failure(op, call, outcome)
            results.append(Result(finish(outcome.length), outcome.status == b.OK))
        return results

    def _hop(self, items: Sequence[Item], threads: int) -> list[Result]:
        if not self.info.hop:
            raise ParameterError(f"{self.info.name} has no hop: {self.info.why['hop']}")
        encodes = []
        for item in items:
            grad, wrap = self._view(item.grad, "grad", *arrays.GRADIENT)
            total = arrays.empty(len(grad), self._device)
            self.batch(
                "decode", [Item(payload=item.payload, out=wrap(total), shared_seed=item.shared_seed)], threads
            )
            with np.errstate(all="ignore"):
                np.add(widened(grad), total, out=total)
                np.multiply(total, _scale(item.scale), out=total)
            encodes.append(replace(item, grad=wrap(total), payload=None, scale=1.0))
        return self.batch("encode", encodes, threads)

    def _view(self, x: Any, what: str, *kinds: str, writes: bool = False) -> tuple[Array, Any]:
        return arrays.view(x, what, *kinds, writes=writes, device=self._device)

    # --- preparation ------------------------------------------------------------------------------

    def _extents(self, n: int) -> tuple[payload.Extent, ...]:
        places = self._places.get(n)
        if places is None:
            most = payload.most_counts(self._program.encode, _length(n), self._values)
            places = self._places[n] = payload.extents(self._program.encode.layout, n, self._values, most)
        return places

    def _extents_of(self, raw: Array, n: int) -> tuple[payload.Extent, ...]:
        """Return where the fields of this payload lie; those of the largest one, if all have one length."""
        decode = self._program.decode_of(raw, n)
        if self.info.exact_size and decode is self._program.decode:
            return self._extents(n)
        counts = payload.read_counts(decode, raw, n, self._values)
        return payload.extents(decode.layout, n, self._values, counts)

    def _prepare_encode(self, item: Item) -> tuple[b.Call, Any]:
        grad, wrap = self._view(item.grad, "grad", *arrays.GRADIENT)
        n = len(grad)
        seed = self._seed(item.seed, "seed", required=self.info.random)
        shared = item.seed if item.shared_seed is None else item.shared_seed
        shared = self._seed(shared, "shared_seed", required=self.info.keyed)
        state = self._state(item.state, "state", n)
        kept, what = (item.state, "state") if item.new_state is None else (item.new_state, "new_state")
        new_state = self._state(kept, what, n, writes=True)
        need = self.max_bytes(n)
        out = buffer = arrays.aligned_empty(need, self._device)
        if item.out is not None:
            buffer, wrap = self._view(item.out, "out", "uint8", writes=True)
            if len(buffer) < need:
                raise ParameterError(
                    f"out has {len(buffer)} bytes; {n} elements need max_bytes({n}) = {need}"
                )
            out = buffer if _is_aligned(buffer) else arrays.aligned_empty(need, self._device)

        def finish(length: int) -> Any:
            if out is not buffer:
                buffer[:length] = out[:length]
            return wrap(buffer[:length])

        return b.Call(n, grad, out, seed, shared, 1.0, state, new_state), finish

    def _prepare_decode(self, item: Item) -> tuple[b.Call, Any]:
        raw = self._view(item.payload, "payload", "uint8")[0]
        out, wrap = self._view(item.out, "out", *arrays.GRADIENT, writes=True)
        payload.check_length(self.info.name, raw, self._extents_of(raw, len(out)), len(out))
        if not _is_aligned(raw):
            copy = arrays.aligned_empty(len(raw), self._device)
            copy[:] = raw
            raw = copy
        shared = self._seed(item.shared_seed, "shared_seed", required=self.info.keyed)
        call = b.Call(len(out), out, raw, 0, shared, float(_scale(item.scale)))
        return call, lambda _: wrap(out)

    def _seed(self, seed: int | None, what: str, *, required: bool = False) -> int:
        if seed is None:
            if required:
                raise ParameterError(f"{self.info.name} needs {what}=, an integer in 0..2^64-1")
            return 0
        return _integer(seed, what, 0, 2**64 - 1, "an integer in 0..2^64-1")

    def _state(
        self, state: Mapping[str, Any] | None, what: str, n: int, *, writes: bool = False
    ) -> dict[str, Array]:
        names = self._program.encode.states
        if state is None and names:
            raise ParameterError(f"{self.info.name} keeps a state: give state=codec.new_state({n})")
        if set(state or {}) != set(names):
            have, want = sorted(state or {}), sorted(names)
            raise ParameterError(
                f"{what} has {have}, and {self.info.name} keeps {want}: see codec.new_state(n)"
            )
        vectors = {}
        for name, value in (state or {}).items():
            vectors[name] = self._view(value, f"{what}['{name}']", "float32", writes=writes)[0]
            if len(vectors[name]) != n:
                raise ParameterError(
                    f"{what}['{name}'] has {len(vectors[name])} elements, and the gradient {n}"
                )
        return vectors

    def _failure(self, op: str, call: b.Call, outcome: b.Outcome) -> Exception:
        name = self.info.name
        if op == "encode":
            return IndexError(
                f"{name}: Encode read a vector outside its range (gradient of {call.n} elements)"
            )
        if outcome.status == b.REFUSED:
            raw, n, values = call.payload, call.n, {**self._values, ir.SHARED_SEED: call.shared_seed}
            return payload.explain_refusal(
                name, self._program.decode_of(raw, n), arrays.on_host(raw), self._extents_of(raw, n), values
            )
        return PayloadError(f"{name}: Decode read a vector outside its range; the payload is corrupt")


def _length(n: int) -> int:
    return _integer(n, "n", 0, 2**48, "an integer of at least 0")


def _integer(value: Any, what: str, low: int, high: int, wanted: str = "") -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise ParameterError(
            f"{what} is {value!r}; it must be {wanted or f'an integer from {low} to {high}'}"
        )
    return number


def _scale(value: Any) -> np.float32:
    try:
        with np.errstate(over="ignore"):
            return np.float32(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ParameterError(f"scale is {value!r}; it must be a number") from None


def _is_aligned(x: Array) -> bool:
    return arrays.address(x) % 16 == 0
