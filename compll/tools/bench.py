"""Speed of codecs: seconds of each operation, beside the least that it could take, in the same rounds.

The bound of an operation is the larger of two times: its least moved bytes (`bound`) at the rate of memcpy
of the gradient's 4n bytes, which moves 8n; and the generator alone for as many numbers as it draws.

Why an operation takes longer is measured too: what a call costs, what the arithmetic takes where memory costs
nothing, and what writing alone takes, since memcpy reads and writes at once and a decoder mostly writes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compll import arrays, driver, ir, payload
from compll.backends import Values
from compll.check import check
from compll.codec import Codec, Item
from compll.errors import ParameterError
from compll.parse import parse
from compll.passes import fuse
from compll.tools import bound, timing
from compll.types import Array

OPERATIONS = ("encode", "decode", "decode_add", "hop", "feedback")
SEED = 7
NEAR = 2**16  # elements of which a few vectors lie in a core's own cache
GENERATORS = {  # nothing but draws, and the reduction that keeps them
    "words": "random<float>(0, 1)",
    "halves": "stochastic_round(0.5)",
}
DRAWING = """
void DrawEncode(float* gradient, uint8* compressed) {{
    float top = reduce(map(range(gradient.size), [&](int i) -> float {{ return {}; }}), 0, greater);
    compressed = concat(top);
}}
void DrawDecode(uint8* compressed, float* gradient) {{
    float top;
    extract(compressed, top);
    gradient = map(range(gradient.size), [&](int i) -> float {{ return top; }});
}}
"""


@dataclass(frozen=True)
class Made:
    """A codec on one backend, with the program that its bounds are derived from."""

    name: str
    codec: Codec
    program: driver.Program

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of `OPERATIONS` that it has but "feedback", which is another codec's encode."""
        return tuple(op for op in OPERATIONS[:-1] if op != "hop" or self.codec.info.hop)


@dataclass(frozen=True)
class Row:
    """One measurement; seconds are medians for one call, `of_bound` is the median of the rounds' ratios.

    `gigabytes`: 10^9 bytes of float32 gradient (4n) a second.  `moved`: the least bytes that it moves.
    `copied`: the rate of memcpy in moved bytes (8n a copy), 10^9 a second.  `limit`: which of the two times
    is the bound: "memory" or "generator".  `call`: seconds of a call on one element.  `arithmetic`: seconds
    at the rate of NEAR elements, by as many threads.  `writing`: seconds of memset for what it writes, 0
    where it reads more.  `cause`: which of the three takes most of `seconds`; "memory" if none takes half.
    """

    codec: str
    operation: str
    n: int
    backend: str
    threads: int
    seconds: float
    gigabytes: float
    payload_bytes: int
    moved: int
    drawn: int
    copied: float
    bound_seconds: float
    of_bound: float
    limit: str
    call: float
    arithmetic: float
    writing: float
    cause: str


def make(
    source: driver.Source,
    backend: str = "auto",
    params: Values | None = None,
    *,
    error_feedback: bool = False,
) -> Made:
    """Compile a codec for measurement; raises what `compll.compile` raises."""
    files = driver.find(source)
    program = driver.load(files, params or {}, error_feedback=error_feedback)
    name = source if isinstance(source, str) and not source.endswith(".pse") else program.info.name
    return Made(name, Codec(program, driver.build(program.checked, backend)), program)


def size(text: str) -> int:
    """Return a number of elements as people write it: 2^20, 1e6, 1000; ParameterError if it is none."""
    base, power, exponent = text.partition("^")
    try:
        value = int(base) ** int(exponent) if power else float(text)
    except (ValueError, OverflowError):
        value = 0.5
    if not (1 <= value <= 2**40) or value != int(value):
        raise ParameterError(f"'{text}' is no number of elements: write 2^20, 1000000 or 1e6")
    return int(value)


@functools.lru_cache(3)  # of the size in hand, of NEAR and of one element: many codecs are measured with them
def gradient(n: int) -> Array:
    """Return n normal elements."""
    return np.random.default_rng(1).standard_normal(n, dtype=np.float32)


def calls(
    codec: Codec, n: int, threads: int, operations: Iterable[str]
) -> tuple[dict[str, Callable[[], object]], Array]:
    """Return a call of each operation as the runtime makes it, with buffers that are there; and a payload.

    States are read from one vector and written to another, so that every call does the same.
    """
    grad, out = gradient(n), np.zeros(n, np.float32)
    states = [codec.new_state(n) or None for _ in range(2)]
    room = arrays.aligned_empty(codec.max_bytes(n))
    encode = Item(grad, room, None, SEED, SEED, states[0], states[1])
    made = codec.batch("encode", [encode], threads)[0].value.copy()
    items = {
        "encode": encode,
        "decode": Item(payload=made, out=out, shared_seed=SEED),
        "decode_add": Item(payload=made, out=out, scale=0.5, shared_seed=SEED),
        "hop": encode._replace(payload=made, scale=0.5),
    }

    def call(op: Any) -> Callable[[], object]:
        return lambda: codec.batch(op, [items[op]], threads)

    return {op: call(op) for op in operations}, made


def _calls_if_able(
    made: Made, n: int, threads: int, operations: Iterable[str]
) -> dict[str, Callable[[], object]]:
    """Return calls on another number of elements; none if the program cannot encode so many."""
    try:
        return calls(made.codec, n, threads, operations)[0]
    except (IndexError, ParameterError):
        return {}


def traffic(made: Made, operation: str, n: int, raw: Array) -> bound.Traffic:
    """Return the least that an operation does; `raw` is a payload, whose counts it takes.

    A hop that backends compose of other operations could at best read the payload within its encode.
    """
    functions, values = _fused(made.program), made.program.checked.values
    counts = payload.read_counts(made.program.decode, raw, n, values)

    def least(op: str) -> bound.Traffic:
        return bound.traffic(functions[op], n, values, counts, bound.cache_bytes())

    if operation in functions:
        return least(operation)
    encode = least("encode")
    return replace(encode, read=encode.read + len(raw))


def _fused(program: driver.Program) -> dict[str, ir.Function]:
    return {f.op: fuse(f) for f in driver.unit_of(program.checked).functions}


@functools.cache
def generators(backend: str) -> dict[str, Codec]:
    """Return a codec for each operator that draws, which does nothing else."""
    made = {}
    for name, text in GENERATORS.items():
        source = DRAWING.format(text)
        program = driver.program_of(check([parse(source, name)], {name: source}, {}))
        made[name] = Codec(program, driver.build(program.checked, backend))
    return made


def measure(
    made: Made,
    n: int,
    threads: int,
    operations: Sequence[str],
    budget: float,
    *,
    labels: Mapping[str, str] | None = None,
    others: Mapping[str, Callable[[], object]] | None = None,
) -> Iterator[tuple[Row, timing.Rounds]]:
    """Time operations on a gradient of n elements, each in rounds with its bounds.

    Args:
        made: the codec.
        n: elements.
        threads: of the operation, of the copy and of the generator.
        operations: of `Made.operations`.
        budget: seconds for each.
        labels: what the rows call an operation, if not by its name.
        others: for each operation, what is called in the same rounds as "other".

    Yields:
        the row and all the rounds it is made of.

    """
    run, raw = calls(made.codec, n, threads, operations)
    near, one = _calls_if_able(made, NEAR, 1, operations), _calls_if_able(made, 1, threads, operations)
    target = np.zeros(n, np.float32)
    draws = functools.cache(functools.partial(_drawing, made.codec.backend, n))
    with ThreadPoolExecutor(threads) as pool:
        ways = timing.copies(gradient(n), target, threads, pool)
        filling = timing.fill(target, threads, pool)
        for operation in operations:
            least = traffic(made, operation, n, raw)
            drawing = {
                f"{what} by {count}": draws(what, count)
                for what, drawn in (("words", least.words), ("halves", least.halves))
                if 16 * drawn >= n  # what draws less is limited by memory
                for count in {1, threads}
            }
            beside: dict[str, Callable[[], object]] = {}
            if near and one:
                beside |= {"near": near[operation], "call": one[operation]}
            if least.written > least.read:
                beside["fill"] = filling
            if others:
                beside["other"] = others[operation]
            functions = {"kernel": run[operation], **ways, **drawing, **beside}
            taken = timing.rounds(functions, budget, rest=timing.REST if threads > 1 else 0.0)
            for what in ("words", "halves"):
                if names := [name for name in drawing if name.startswith(what)]:
                    taken = taken.with_least(what, *names)
            taken = taken.with_least("copy", *ways)
            yield (
                _row(made, (labels or {}).get(operation, operation), n, threads, taken, least, len(raw)),
                taken,
            )


def _drawing(backend: str, n: int, what: str, threads: int) -> Callable[[], object]:
    return calls(generators(backend)[what], n, threads, ["encode"])[0]["encode"]


def _row(
    made: Made,
    operation: str,
    n: int,
    threads: int,
    taken: timing.Rounds,
    least: bound.Traffic,
    payload_bytes: int,
) -> Row:
    draws = {"words": least.words, "halves": least.halves}
    bounds: list[float] = []
    limits: list[str] = []
    for at, kernel in enumerate(taken.seconds["kernel"]):
        memory = least.moved / (8 * n) * taken.seconds["copy"][at]
        noise = sum(
            count / n * taken.seconds[what][at] for what, count in draws.items() if what in taken.seconds
        )
        bounds.append(max(memory, noise) / kernel)
        limits.append("memory" if memory >= noise else "generator")
    seconds = taken.median("kernel")
    of_bound = float(np.median(bounds))
    parts = causes(taken, n, threads, least)
    return Row(
        codec=made.name,
        operation=operation,
        n=n,
        backend=made.codec.backend,
        threads=threads,
        seconds=seconds,
        gigabytes=4e-9 * n / seconds,
        payload_bytes=payload_bytes,
        moved=least.moved,
        drawn=least.words + least.halves,
        copied=8e-9 * n / taken.median("copy"),
        bound_seconds=of_bound * seconds,
        of_bound=of_bound,
        limit=max(set(limits), key=limits.count),
        **parts,
        cause=greatest(parts, seconds),
    )


def causes(taken: timing.Rounds, n: int, threads: int, least: bound.Traffic) -> dict[str, float]:
    """Return the seconds that each cause of `Row` would take alone."""
    call, near = (taken.median(name) if name in taken.seconds else 0.0 for name in ("call", "near"))
    return {
        "call": call,
        "arithmetic": max(0.0, near - call) * n / NEAR / threads,
        "writing": taken.median("fill") * least.written / (4 * n) if "fill" in taken.seconds else 0.0,
    }


def greatest(causes: Mapping[str, float], seconds: float) -> str:
    """Return the cause that takes the longest; "memory" if none takes half of an operation's seconds."""
    most = max(causes, key=lambda cause: causes[cause])
    return most if causes[most] >= seconds / 2 else "memory"
