"""What synchronization costs: counted by the executor, read by `optimizer.stats()`."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Meter:
    """The running totals of one rank. Bytes are headers and bodies."""

    steps: int = 0
    dropped_steps: int = 0  # steps with a value that was not finite
    tasks: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    raw_bytes_sent: int = 0  # what the messages sent would have taken as float32
    bytes_reduced: int = 0  # that an engine was given to all-reduce; what it sends is its own affair
    encode_seconds: float = 0.0  # encodes and hops
    decode_seconds: float = 0.0  # decodes and merges
    wait_seconds: float = 0.0  # the training thread, inside synchronize()

    def stats(self) -> Stats:
        """The totals as they are now."""
        return Stats(*(getattr(self, f.name) for f in fields(Meter)))


@dataclass(frozen=True, slots=True)
class Stats:
    """The totals of one rank since the start, or since an earlier `Stats`; the fields are `Meter`'s."""

    steps: int
    dropped_steps: int
    tasks: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    raw_bytes_sent: int
    bytes_reduced: int
    encode_seconds: float
    decode_seconds: float
    wait_seconds: float

    @property
    def ratio(self) -> float:
        """How many times fewer bytes were sent than float32 would have taken; 1 if nothing was sent."""
        return self.raw_bytes_sent / self.bytes_sent if self.bytes_sent else 1.0

    @property
    def bytes_sent_per_step(self) -> float:
        """Bytes that this rank sent a step; 0 before the first."""
        return self.bytes_sent / self.steps if self.steps else 0.0

    def since(self, earlier: Stats) -> Stats:
        """What was added after `earlier`."""
        return Stats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(Stats)))
