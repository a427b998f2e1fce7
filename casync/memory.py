"""Where gradients lie, and how work there is ordered: host memory, or a GPU (`casync.gpu`).

What is computed in host memory is there when the call returns. On a GPU a call only launches; what the host
must know of its outcome (whether values are finite, how long a payload became, what is to be sent) comes
later. So what needs it is handed over as a function: called at once here, there when it has come.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from casync.buffers import Pool
from casync.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from casync.bodies import BodyFormat
    from casync.buffers import Lease
    from casync.codecs import BatchCodec
    from casync.payload import Payload
    from compll.codec import Item, Operation, Result

    Vector = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Call = Callable[[], object]
    Encoded = Callable[[Bytes, Sequence[Bytes | None] | None, bool], None]

Flag: TypeAlias = Any
"""Whether something holds of values: a bool, or, of values on a GPU, an array of one there."""


class Memory(Protocol):
    """The memory of one rank's gradients. Unless it says otherwise, the compute thread calls.

    Arrays are NumPy's in host memory, and on a GPU CuPy's, which have the same operators and methods.
    """

    on_gpu: bool
    pool: Pool
    """Buffers where gradients lie."""
    arrivals: Pool | None
    """Buffers that frames are to arrive in; None: any."""
    direct: bool
    """Whether the transport takes bodies that lie on a GPU; set before the first."""

    def start(self, bound: Callable[[Call], Call], put: Callable[[Call], None]) -> None:
        """Make calls that wait by `put`, from any thread, as `bound` made them when they were handed over."""

    def here(self) -> contextlib.AbstractContextManager[object]:
        """Work there, in this thread."""

    def check(self, gradient: str, values: object) -> None:
        """Raise TypeError for what is no array there; any thread."""

    def handed_over(self, call: Call) -> None:
        """Call when what the training has on its way so far is done, in order; in the training thread.

        `call` is made in any thread.
        """

    def run(self, codec: BatchCodec, op: Operation, items: Sequence[Item], threads: int) -> list[Result]:
        """Run an operation; what is wrong with a payload is raised, here or in a call that waits."""

    def parts(self, form: BodyFormat, payload: Payload) -> Sequence[Bytes | None]:
        """A payload by segment, there; PayloadError for a body that is none."""

    def encoded(
        self,
        codec: BatchCodec,
        form: BodyFormat,
        lease: Lease,
        results: Sequence[Result | None],
        then: Encoded,
    ) -> None:
        """Make the body of what was encoded in the lease's buffer: `then(body, parts, finite)`."""

    def known(self, flags: Sequence[Flag], then: Callable[[bool], None]) -> None:
        """Tell whether all flags hold, when all that was run before is done."""

    def new_state(self, codec: BatchCodec, n: int) -> dict[str, Vector]:
        """A codec's zero state, there. Raises what the codec does if it cannot work there."""

    def empty(self, n: int) -> Vector:
        """A vector for the runtime itself, with any contents."""

    def lasting(self, n: int) -> Vector:
        """A vector that the training may keep, with any contents."""

    def to_host(self, values: Vector) -> Vector:
        """The values in host memory, where they may be itself; waits. Between steps, any thread."""

    def upload(self, values: Vector) -> Vector:
        """The same values there, for what follows in this thread; any thread."""

    def close(self) -> None:
        """End its threads. Idempotent."""


class Host:
    """Host memory: NumPy's arrays, and nothing waits."""

    on_gpu: bool = False
    direct: bool = False
    arrivals: Pool | None = None

    def __init__(self) -> None:
        self.pool = Pool()

    def start(self, bound: Callable[[Call], Call], put: Callable[[Call], None]) -> None:
        """Nothing waits."""

    def here(self) -> contextlib.AbstractContextManager[object]:
        """It is everywhere."""
        return contextlib.nullcontext()

    def check(self, gradient: str, values: object) -> None:
        """NumPy arrays, and rows."""
        if not isinstance(values, np.ndarray | Rows):
            raise TypeError(
                f"{gradient} is a {type(values).__module__}.{type(values).__name__}, and this rank's "
                "gradients lie in host memory: give a NumPy array"
            )

    def handed_over(self, call: Call) -> None:
        """At once."""
        call()

    def run(self, codec: BatchCodec, op: Operation, items: Sequence[Item], threads: int) -> list[Result]:
        """The codec's own."""
        return codec.batch(op, items, threads=threads)

    def parts(self, form: BodyFormat, payload: Payload) -> Sequence[Bytes | None]:
        """They lie in the body."""
        return form.split(payload.body, payload.absent)

    def encoded(
        self,
        codec: BatchCodec,  # noqa: ARG002  (the memory's signature, here and below)
        form: BodyFormat,
        lease: Lease,
        results: Sequence[Result | None],
        then: Encoded,
    ) -> None:
        """Pack what was encoded, in place."""
        body = form.pack(lease.buffer, [None if result is None else result.value for result in results])
        then(body, None, all(result.finite for result in results if result is not None))

    def known(self, flags: Sequence[Flag], then: Callable[[bool], None]) -> None:
        """At once."""
        then(all(flags))

    def new_state(self, codec: BatchCodec, n: int) -> dict[str, Vector]:
        """The codec's own."""
        return codec.new_state(n)

    def empty(self, n: int) -> Vector:
        """NumPy's."""
        return np.empty(n, np.float32)

    lasting = empty

    def to_host(self, values: Vector) -> Vector:
        """Itself."""
        return values

    def upload(self, values: Vector) -> Vector:
        """Itself."""
        return values

    def close(self) -> None:
        """It has no threads."""
