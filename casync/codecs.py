"""What the runtime asks of a codec: the part of `compll.codec.Codec` that it uses, as protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from compll.codec import Awaited, Item, Operation, Result


class CodecInfo(Protocol):
    """The properties of a codec that the runtime uses; `compll.codec.Codec.info` has them."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def exact_size(self) -> bool: ...  # noqa: D102
    @property
    def stateful(self) -> bool: ...  # noqa: D102
    @property
    def random(self) -> bool: ...  # noqa: D102
    @property
    def keyed(self) -> bool: ...  # noqa: D102
    @property
    def feedback(self) -> bool: ...  # noqa: D102
    @property
    def hop(self) -> bool: ...  # noqa: D102
    @property
    def sparse(self) -> bool: ...  # noqa: D102
    @property
    def summable(self) -> bool: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def params(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def why(self) -> Mapping[str, str]: ...  # noqa: D102


class BatchCodec(Protocol):
    """The part of `compll.codec.Codec` that the runtime uses."""

    @property
    def info(self) -> CodecInfo:
        """The codec's properties."""

    def max_bytes(self, n: int) -> int:
        """The most bytes of a payload of n elements."""

    def fields(self, n: int) -> Sequence[tuple[str, int, int | None]]:
        """Type, offset in bytes and number of elements of each field of the payload of n elements."""

    def new_state(self, n: int) -> dict[str, Any]:
        """Zero state of n elements."""

    def batch(self, op: Operation, items: Sequence[Item], threads: int | None = None) -> list[Result]:
        """Run one operation on many items."""


class DeviceCodec(BatchCodec, Protocol):
    """A codec that also works on a GPU, without waiting: see `compll.codec.Codec`."""

    def new_state(self, n: int, like: Any = None) -> dict[str, Any]:
        """Zero state of n elements, where `like` lies."""

    def batch(
        self, op: Operation, items: Sequence[Item], threads: int | None = None, *, wait: bool = True
    ) -> list[Result]:
        """Run one operation on many items."""

    def awaited(self, outs: Sequence[Any]) -> Awaited:
        """What calls that were not waited for left on the GPU."""
