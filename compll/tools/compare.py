"""A backend against the interpreter: everything that the operations write, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compll import arrays
from compll.codec import Codec, Item, Result
from compll.errors import ParameterError, PayloadError
from compll.tools import samples
from compll.types import Array

SIZES = (0, 1, 15, 31, 127, 1023, 1025, 4096 * 3 + 5)
SHORT = 2000  # gradients of fewer elements are tried with every label, longer ones with LONG
LONG = ("normal", "mixed")
THREADS = (1, 2, 4)
SEED, SCALE, FACTOR = 7, 0.5, -0.7  # of encode and hop, of hop, of decode_add
ERRORS = (IndexError, ParameterError, PayloadError)


@dataclass(frozen=True)
class Case:
    """A gradient, and what the interpreter writes for it: name of a result -> bytes, or the error's text."""

    label: str
    gradient: Array
    written: Mapping[str, bytes]

    @property
    def n(self) -> int:
        """How many elements the gradient has."""
        return len(self.gradient)

    @property
    def error(self) -> str:
        """What the first operation that raised said; empty if none did."""
        found = (f"{k}: {v.decode()}" for k, v in self.written.items() if k.endswith(RAISED))
        return next(found, "")


RAISED = " raises"  # after an operation's name: its error stands there in `written`


@dataclass(frozen=True)
class Difference:
    """A result that a backend writes otherwise than the interpreter."""

    label: str
    n: int
    threads: int
    result: str

    def __str__(self) -> str:
        """Say where it is."""
        return f"{self.result} of a gradient '{self.label}' of {self.n} elements, {self.threads} threads"


@dataclass(frozen=True)
class Comparison:
    """How many results of a backend were compared, for so many gradients, and which differ."""

    backend: str
    gradients: int
    results: int
    threads: tuple[int, ...]
    differences: tuple[Difference, ...]


def grid(sizes: Iterable[int] = SIZES) -> list[tuple[str, int]]:
    """Return what is tried: (label, n)."""
    return [(label, n) for n in sizes for label in (samples.LABELS if n < SHORT else LONG)]


def case(reference: Codec, label: str, n: int, seed: int = 1) -> Case:
    """Return a gradient with what the interpreter writes for it."""
    grad = samples.gradient(label, n, seed)
    return Case(label, grad, written(reference, grad))


def written(codec: Codec, grad: Array, *, threads: int = 1, payload: bytes | None = None) -> dict[str, bytes]:
    """Run every operation on a gradient; return what each writes.

    Args:
        codec: on any backend; a GPU's results are copied.
        grad: in host memory.
        threads: for every operation.
        payload: what is decoded; by default what encode writes.

    Returns:
        payload, finite (the call's flag), "state x", decoded, decode_add, hop and "hop's state x"; of an
        operation that raises, "encode raises" with the error, and nothing after it if that is encode.

    """
    n, device = len(grad), arrays.GPU if codec.backend == "cuda" else arrays.HOST
    out: dict[str, bytes] = {}

    def own(x: Array) -> Any:
        return arrays.on_device(x, device)

    def run(op: Any, item: Item, keep: Callable[[Result], Mapping[str, Any]]) -> bool:
        try:
            result = codec.batch(op, [item], threads)[0]
            if result.finite is None:  # a call on a GPU that nobody has waited for
                result = codec.result(result.value)
        except ERRORS as e:
            out[op + RAISED] = f"{type(e).__name__}: {e}".encode()
            return False
        out.update({k: arrays.on_host(v).tobytes() for k, v in keep(result).items()})
        return True

    state = {k: own(v) for k, v in samples.state(codec, n).items()}
    item = Item(grad=own(grad), seed=SEED, shared_seed=SEED, state=state or None)
    if not run(
        "encode",
        item,
        lambda r: {
            "payload": r.value,
            "finite": np.asarray(r.finite),
            **{f"state {k}": v for k, v in state.items()},
        },
    ):
        return out
    raw = own(np.frombuffer(out["payload"] if payload is None else payload, np.uint8))
    decode = Item(payload=raw, out=arrays.empty(n, device), shared_seed=SEED)
    run("decode", decode, lambda r: {"decoded": r.value})
    base = own(samples.gradient("mixed", n, seed=4))
    added = Item(payload=raw, out=base, scale=FACTOR, shared_seed=SEED)
    run("decode_add", added, lambda r: {"decode_add": r.value})
    if codec.info.hop:
        state = {k: own(v) for k, v in samples.state(codec, n).items()}
        hop = Item(own(grad), None, raw, SEED, SEED, state or None, None, SCALE)
        run("hop", hop, lambda r: {"hop": r.value, **{f"hop's state {k}": v for k, v in state.items()}})
    return out


def compare(codec: Codec, cases: Sequence[Case], threads: Sequence[int] = THREADS) -> Comparison:
    """Run every case on a backend; gradients shorter than a tile on one thread, which is all they use."""
    differences: list[Difference] = []
    results = 0
    for c in cases:
        for count in threads if c.n > 1024 else threads[:1]:
            have = written(codec, c.gradient, threads=count, payload=c.written.get("payload"))
            results += len(have.keys() | c.written.keys())
            differences += [
                Difference(c.label, c.n, count, what)
                for what in sorted(have.keys() | c.written.keys())
                if have.get(what) != c.written.get(what)
            ]
    return Comparison(codec.backend, len(cases), results, tuple(threads), tuple(differences))
