"""The items of a batch, and how each is checked and becomes the call that a backend runs.

All arguments are checked here, before anything is written.  What is done for every item of a small gradient
costs more than its kernel does, so the plain case takes the short way through each check.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from compll import arrays, payload
from compll.backends import NO_STATE, Call, Values
from compll.driver import Program
from compll.errors import ParameterError, PayloadError
from compll.pending import Pending
from compll.types import Array

MOST_SEED = 2**64 - 1
ALIGNMENT = 16  # of a payload's beginning, in bytes
Wrap = Callable[[Array], Any]
Goal = tuple[Any, Array | None, Wrap]
"""The caller's output; of a payload, our view of it; and what makes it one of the caller's arrays."""


class Item(NamedTuple):
    """One gradient of a batch; which fields an operation uses: see `Codec.batch`."""

    grad: Any = None
    out: Any = None
    payload: Any = None
    seed: int | None = None
    shared_seed: int | None = None
    state: Mapping[str, Any] | None = None
    new_state: Mapping[str, Any] | None = None
    scale: float = 1.0


class Result(NamedTuple):
    """What became of an item: the payload (encode, hop) or the output, and whether the input was finite.

    `finite` is None if the call did not wait for a GPU: `Codec.result` waits.
    """

    value: Any
    finite: bool | None


class Preparer:
    """Makes calls of items, for one program with given values of its parameters, on one kind of device.

    What prepares a call returns besides where its result goes, of which `finish` makes the caller's.
    """

    def __init__(self, program: Program, values: Values, device: str, pending: Pending) -> None:
        """Begin with no sizes known."""
        self.program, self.values, self.device, self.pending = program, values, device, pending
        self.widths = program.checked.width is not None
        self.info = program.info
        self.states = dict.fromkeys(program.encode.states).keys()  # a set that keeps the program's order
        self._places: dict[int, tuple[payload.Extent, ...]] = {}
        self._most: dict[int, int] = {}
        self.of = {"encode": self.encode, "decode": self.decode, "decode_add": self.decode, "hop": self.hop}

    # --- sizes ------------------------------------------------------------------------------------

    def max_bytes(self, n: int) -> int:
        """Return the most bytes that a payload of n elements has.

        Raises:
            ParameterError: Encode or Decode keeps positions in a type that is too small for n elements.

        """
        most = self._most.get(n)
        if most is None:
            most = self._most[n] = payload.total_bytes(self.extents(n))
        return most

    def extents(self, n: int) -> tuple[payload.Extent, ...]:
        """Return where the fields of the largest payload of n elements lie."""
        places = self._places.get(n)
        if places is None:
            payload.most_counts(self.program.decode, length(n), self.values)  # it may refuse as many, too
            most = payload.most_counts(self.program.encode, n, self.values)
            places = payload.extents(self.program.encode.layout, n, self.values, most)
            self._places[n] = places
        return places

    def width_of(self, raw: Array, n: int) -> int:
        """Return the width of a payload, or 0 for the codec's own.

        On a GPU it is not read, which would wait, where the length tells that it is the codec's own.
        """
        return (
            0 if self.device == arrays.GPU and self._is_own_length(len(raw), n) else self.read_width(raw, n)
        )

    def read_width(self, raw: Array, n: int) -> int:
        """Return the width that a payload says, or 0 for the codec's own.

        Raises:
            PayloadError: it is too short to say it, or no payload is of that width.

        """
        width = self.program.checked.width
        if width is None:
            return 0
        found = payload.read_scalar(self.program.decode, width.field, raw, n, self.values)
        own = self.values[width.parameter]
        if found != own and found not in width.others:
            able = sorted({*width.others, own})
            raise PayloadError(
                f"{self.info.name}: the payload says that '{width.field}' is {found}; "
                f"it can be {', '.join(map(str, able))}"
            )
        return 0 if found == own else found

    def _is_own_length(self, size: int, n: int) -> bool:
        """Whether payloads of the codec's own width have this length, and no others have."""
        width = self.program.checked.width
        if width is None or not self.info.exact_size or size != self.max_bytes(n):
            return False
        others = (self.program.decode_for(w) for w in width.others if w != self.values[width.parameter])
        layouts = (payload.extents(f.layout, n, self.values) for f in others)
        return all(payload.total_bytes(places) != size for places in layouts)

    def extents_of(self, raw: Array, n: int, width: int) -> tuple[payload.Extent, ...]:
        """Return where the fields of this payload lie; those of the largest one, if all have one length."""
        decode = self.program.decode_for(width)
        if self.info.exact_size and decode is self.program.decode:
            return self.extents(n)
        counts = payload.read_counts(decode, raw, n, self.values)
        return payload.extents(decode.layout, n, self.values, counts)

    def check(self, raw: Array, n: int, width: int) -> None:
        """Raise PayloadError unless these bytes have the right length; waits for counts on a GPU."""
        payload.check_length(self.info.name, raw, self.extents_of(raw, n, width), n)

    # --- operations -------------------------------------------------------------------------------

    def encode(self, item: Item) -> tuple[Call, Goal]:
        """Prepare an encode."""
        grad, wrap = arrays.view(item.grad, "grad", arrays.GRADIENT, self.device)
        shared = item.seed if item.shared_seed is None else item.shared_seed
        return self._encode(item, grad, wrap, shared)

    def hop(self, item: Item) -> tuple[Call, Goal]:
        """Prepare an encode that reads a payload besides."""
        grad, wrap = arrays.view(item.grad, "grad", arrays.GRADIENT, self.device)
        source, source_at, _, _ = self._received(item.payload, len(grad))
        return self._encode(item, grad, wrap, item.shared_seed, source, source_at, as_scale(item.scale))

    def decode(self, item: Item) -> tuple[Call, Goal]:
        """Prepare a decode or a decode_add."""
        out, wrap = arrays.view(item.out, "out", arrays.GRADIENT, self.device, writes=True)
        raw, at, width, padded = self._received(item.payload, len(out))
        shared = self._seed(item.shared_seed, "shared_seed", required=self.info.keyed)
        scale = as_scale(item.scale)
        call = Call(len(out), out, raw, 0, shared, scale, NO_STATE, NO_STATE, None, width, padded, at)
        return call, (item.out, None, wrap)

    def _encode(
        self,
        item: Item,
        grad: Array,
        wrap: Wrap,
        shared: int | None,
        source: Array | None = None,
        source_at: int = 0,
        scale: float = 1.0,
    ) -> tuple[Call, Goal]:
        n = len(grad)
        seed = self._seed(item.seed, "seed", required=self.info.random)
        shared = self._seed(shared, "shared_seed", required=self.info.keyed)
        updated = item.new_state is None
        old = new = self._state(item.state, "state", n, writes=updated)
        if not updated:
            new = self._state(item.new_state, "new_state", n, writes=True)
        need = self.max_bytes(n)
        if item.out is None:
            buffer = arrays.aligned_empty(need, self.device)
        else:
            buffer, wrap = arrays.view(item.out, "out", arrays.PAYLOAD, self.device, writes=True)
            if len(buffer) < need:
                raise ParameterError(
                    f"out has {len(buffer)} bytes; {n} elements need max_bytes({n}) = {need}"
                )
        out, at = buffer, arrays.address(buffer)
        if source is not None and at < source_at + len(source) and source_at < at + len(buffer):
            raise ParameterError(
                "out and payload share memory, and a hop reads one while it writes the other"
            )
        if at % ALIGNMENT:
            out = arrays.aligned_empty(need, self.device)
            at = arrays.address(out)
        call = Call(n, grad, out, seed, shared, scale, old, new, source, 0, False, at, source_at)
        return call, (item.out, buffer, wrap)

    def finish(self, call: Call, goal: Goal, size: int) -> Any:
        """Return what the caller of a call gets that has written a payload of so many bytes, or an output."""
        given, buffer, wrap = goal
        if buffer is None:
            return given
        if call.payload is not buffer:
            buffer[:size] = call.payload[:size]
        return wrap(buffer[:size]) if given is None or self.device == arrays.HOST else given

    def _received(self, given: Any, n: int) -> tuple[Array, int, int, bool]:
        """Return a payload where kernels can read it, its address and width, and whether it is `padded`.

        What a call without wait has written on a GPU is taken as it lies in its buffer.  A length that counts
        in the payload tell is left to the kernels, which refuse a wrong one: reading them here takes longer
        than a small kernel does, and on a GPU it would wait.
        """
        raw = arrays.view(given, "payload", arrays.PAYLOAD, self.device)[0]
        padded = self.device == arrays.GPU and given in self.pending
        if padded and self.info.exact_size and len(raw) >= self.max_bytes(n):
            raw, padded = raw[: self.max_bytes(n)], False
        width = self.width_of(raw, n) if self.widths else 0
        if self.info.exact_size and (width or len(raw) != self.max_bytes(n)):
            self.check(raw, n, width)
        at = arrays.address(raw)
        if at % ALIGNMENT == 0:
            return raw, at, width, padded
        copy = arrays.aligned_empty(len(raw), self.device)
        copy[:] = raw
        return copy, arrays.address(copy), width, padded

    def _seed(self, seed: int | None, what: str, *, required: bool) -> int:
        if type(seed) is int and 0 <= seed <= MOST_SEED:
            return seed
        if seed is not None:
            return integer(seed, what, 0, MOST_SEED, "an integer in 0..2^64-1")
        if required:
            raise ParameterError(f"{self.info.name} needs {what}=, an integer in 0..2^64-1")
        return 0

    def _state(
        self, state: Mapping[str, Any] | None, what: str, n: int, *, writes: bool = False
    ) -> dict[str, Array]:
        if not state and not self.states:
            return {}
        if state is None:
            raise ParameterError(f"{self.info.name} keeps a state: give state=codec.new_state({n})")
        if state.keys() != self.states:
            have, want = sorted(state), sorted(self.states)
            raise ParameterError(
                f"{what} has {have}, and {self.info.name} keeps {want}: see codec.new_state(n)"
            )
        vectors = {}
        for name in self.states:
            called = f"{what}['{name}']"
            vector, _ = arrays.view(state[name], called, arrays.STATE, self.device, writes=writes)
            if len(vector) != n:
                raise ParameterError(f"{called} has {len(vector)} elements, and the gradient {n}")
            vectors[name] = vector
        return vectors


def length(n: int) -> int:
    """Return a number of elements; ParameterError if it cannot be one."""
    return integer(n, "n", 0, 2**48, "an integer of at least 0")


def integer(value: Any, what: str, low: int, high: int, wanted: str = "") -> int:
    """Return an integer argument; ParameterError if it is none from `low` to `high`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise ParameterError(
            f"{what} is {value!r}; it must be {wanted or f'an integer from {low} to {high}'}"
        )
    return number


def as_scale(value: Any) -> float:
    """Return the float32 that a scale is; ParameterError if it is no number."""
    try:
        return ctypes.c_float(value).value
    except (TypeError, OverflowError):
        raise ParameterError(f"scale is {value!r}; it must be a number") from None
