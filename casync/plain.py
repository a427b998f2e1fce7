"""Raw float32 with a codec's batch interface: uncompressed gradients go through the same executor, exactly.

`hop` adds. A payload is the gradient's bytes, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from compll.codec import Item, PayloadError, Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class PlainInfo:
    """The properties that the runtime asks of a codec, as of `Codec.info`."""

    name: str = "float32"
    exact_size: bool = True
    stateful: bool = False
    random: bool = False
    keyed: bool = False
    feedback: bool = False
    hop: bool = True
    sparse: bool = False
    summable: bool = True
    fingerprint: str = "float32"
    params: Mapping[str, Any] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)


class Plain:
    """Encode and decode copy, hop adds: NaN and infinity pass element by element, as in an all-reduce."""

    info = PlainInfo()

    def max_bytes(self, n: int) -> int:
        """Four bytes an element."""
        return 4 * n

    def fields(self, n: int) -> tuple[tuple[str, int, int | None], ...]:
        """One vector."""
        return (("float", 0, n),)

    def new_state(self, n: int, like: Any = None) -> dict[str, Any]:  # noqa: ARG002  (a codec's signature)
        """Nothing is kept."""
        return {}

    def batch(
        self,
        op: str,
        items: Sequence[Item],
        threads: int | None = None,  # noqa: ARG002
        *,
        wait: bool = True,  # noqa: ARG002
    ) -> list[Result]:
        """Run `encode`, `hop`, `decode` or `decode_add` on each item; PayloadError on a wrong length.

        On a GPU `finite` of a result is an array of one bool there.
        """
        return [getattr(self, f"_{op}")(item) for item in items]

    def _encode(self, item: Item) -> Result:
        written = item.out[: 4 * item.grad.size]
        written.view(np.float32)[:] = item.grad
        return Result(written, all_finite(item.grad))

    def _hop(self, item: Item) -> Result:
        written = item.out[: 4 * item.grad.size]
        total = written.view(np.float32)
        np.add(item.grad, _values(item.payload, item.grad.size), out=total)
        total *= np.float32(item.scale)
        return Result(written, all_finite(total))

    def _decode(self, item: Item) -> Result:
        item.out[:] = _values(item.payload, item.out.size)
        return Result(item.out, True)

    def _decode_add(self, item: Item) -> Result:
        values = _values(item.payload, item.out.size)
        np.add(item.out, values if item.scale == 1 else np.float32(item.scale) * values, out=item.out)
        return Result(item.out, True)


def _values(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    if payload.nbytes != 4 * n:
        raise PayloadError(f"a payload of {n} float32 has {4 * n} bytes, this one {payload.nbytes}")
    return payload.view(np.float32)


def all_finite(values: NDArray[np.float32]) -> Any:
    """Whether no element is NaN or infinite, of values on a GPU as an array of one bool there.

    Then both extremes are finite: NaN propagates into them.
    """
    return not values.size or np.isfinite(values.min()) & np.isfinite(values.max())
