"""Curves of a codec's kernels, measured on this machine: median milliseconds against float32 elements.

The file is JSON, made to be read: the conditions of the measurement, then four curves of [elements, ms].
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import os
import platform
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import compll
from compll import knobs
from compll.codec import Item
from secopa.inputs import SecopaError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compll.codec import Codec

FORMAT: Final = 1
SIZES: Final = tuple(4096 * 4**i for i in range(6))
"""`secopa profile`: 4096 elements (the smallest partition) to 4 Mi (the largest sensible one)."""
QUICK_SIZES: Final = (4096, 65_536, 1_048_576)
"""What `secopa plan` measures by itself."""


@dataclass(frozen=True)
class Curve:
    """Piecewise linear through measured (elements, ms) points, in ascending order of elements.

    Below the first point the cost is the first point's (fixed costs dominate there); beyond the last it grows
    in proportion to the elements. Times never fall with size: a dip in the medians is noise, and levelled.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        """Raise SecopaError unless there are points, ascending, with times of zero or more."""
        sizes = [elements for elements, _ in self.points]
        if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
            raise SecopaError("a curve needs [elements, ms] points in ascending order of elements")
        if not all(math.isfinite(ms) and ms >= 0 for _, ms in self.points):
            raise SecopaError("a curve's times must be finite and zero or more")

    def __call__(self, x: float) -> float:
        """Milliseconds for x elements."""
        sizes, levels = self._levelled
        right = bisect.bisect_left(sizes, x)
        if right == 0:
            return levels[0]
        if right == len(sizes):
            return levels[-1] * x / sizes[-1]
        share = (x - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return levels[right - 1] + share * (levels[right] - levels[right - 1])

    @cached_property
    def _levelled(self) -> tuple[list[int], list[float]]:
        """Sizes, and times that never fall; made once, since planners ask a curve a million times."""
        return [n for n, _ in self.points], list(itertools.accumulate((ms for _, ms in self.points), max))


@dataclass(frozen=True)
class Conditions:
    """Under what a profile was taken; a profile taken under others says nothing about this run."""

    codec: str
    params: str
    fingerprint: str
    backend: str
    threads: int
    local_ranks: int
    cpu: str
    cores: int
    python: str
    numpy: str
    compll: str

    @property
    def title(self) -> str:
        """The codec and its parameters, such as `terngrad(bitwidth=2)`."""
        return f"{self.codec}({self.params})" if self.params else self.codec


@dataclass(frozen=True)
class Profile:
    """The curves that the default cost model needs, in ms against elements, and where they come from.

    merge: out += part, uncompressed. decode_add: out += decoded payload. Both counted by elements of out.
    """

    conditions: Conditions
    encode: Curve
    decode: Curve
    decode_add: Curve
    merge: Curve

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises OSError."""
        curves = {name: [list(point) for point in getattr(self, name).points] for name in CURVES}
        text = json.dumps({"format": FORMAT, "conditions": asdict(self.conditions)}, indent=2)
        rows = ",\n".join(f'    "{name}": {json.dumps(points)}' for name, points in curves.items())
        text = text.removesuffix("\n}") + ',\n  "curves_elements_ms": {\n' + rows + "\n  }\n}\n"
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a file that `save` wrote. Raises SecopaError that names the file and what is wrong with it."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise SecopaError(f"its format is {data['format']}, this version reads {FORMAT}")
            curves = data["curves_elements_ms"]
            return cls(
                _conditions(data["conditions"]),
                **{name: Curve(tuple((int(n), float(ms)) for n, ms in curves[name])) for name in CURVES},
            )
        except FileNotFoundError:
            reason = "there is no such file"
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        except SecopaError as error:
            reason = str(error)
        except json.JSONDecodeError as error:
            reason = f"not JSON in line {error.lineno}: {error.msg}"
        except (KeyError, TypeError, ValueError) as error:
            reason = f"not a profile: {type(error).__name__} {error}"
        raise SecopaError(f"{path}: {reason}; measure it with: secopa profile --output {path}")


CURVES: Final = tuple(field.name for field in fields(Profile) if field.name != "conditions")


def _conditions(data: dict[str, Any]) -> Conditions:
    for field in fields(Conditions):
        expected = int if field.type == "int" else str
        if not isinstance(data[field.name], expected):
            raise TypeError(f"condition {field.name} is not {expected.__name__}")
    return Conditions(**data)


def conditions(codec: Codec, local_ranks: int = 1) -> Conditions:
    """Return what a profile of this codec taken now, here, would be taken under.

    Threads: the machine's cores over its local ranks, as the runtime divides them.
    """
    params = ", ".join(f"{name}={param.value}" for name, param in sorted(codec.info.params.items()))
    return Conditions(
        codec=codec.info.name,
        params=params,
        fingerprint=codec.info.fingerprint,
        backend=codec.backend,
        threads=max(1, knobs.threads() // local_ranks),
        local_ranks=local_ranks,
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        numpy=np.__version__,
        compll=compll.__version__,
    )


def difference(taken: Conditions, now: Conditions) -> str:
    """Return which conditions differ, as `cores 8 there, 2 here; ...`."""
    pairs = [(f.name, getattr(taken, f.name), getattr(now, f.name)) for f in fields(Conditions)]
    return "; ".join(f"{name} {there} there, {here} here" for name, there, here in pairs if there != here)


def cache_path(taken: Conditions) -> Path:
    """Return where the quick profile with these conditions is cached: one file for each set of them."""
    key = hashlib.sha256(json.dumps(asdict(taken), sort_keys=True).encode()).hexdigest()[:16]
    return knobs.cache_dir() / "profiles" / f"{taken.codec}-{key}.json"


def measure(
    codec: Codec,
    sizes: Sequence[int] = SIZES,
    *,
    local_ranks: int = 1,
    seconds: float = 0.3,
    progress: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure encode, decode, decode_add and merge at each size.

    Every point is a median after a warm-up, of as many repetitions as fit into `seconds` (3 at least, 101 at
    most). local_ranks > 1: so many copies run at once, each with its share of the cores, as in training.
    """
    taken = conditions(codec, local_ranks)
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in CURVES}
    for elements in sorted(sizes):
        ranks = [_calls(codec, elements, taken.threads, seed) for seed in range(local_ranks)]
        for name in CURVES:
            progress(f"{name} {elements:,} elements")
            ms = _median_ms([rank[name] for rank in ranks], seconds)
            points[name].append((elements, float(f"{ms:.4g}")))  # more digits would be noise
    return Profile(taken, **{name: Curve(tuple(points[name])) for name in CURVES})


def _calls(codec: Codec, elements: int, threads: int, seed: int) -> dict[str, Callable[[], object]]:
    """One rank's buffers at one size, and what is to be timed on them."""
    rng = np.random.default_rng(seed)
    grad = rng.standard_normal(elements, dtype=np.float32)
    out = np.zeros(elements, np.float32)
    state, new_state = codec.new_state(elements), codec.new_state(elements)
    buffer = np.empty(codec.max_bytes(elements), np.uint8)
    encode = Item(grad=grad, out=buffer, seed=seed, shared_seed=1, state=state, new_state=new_state)
    payload = codec.batch("encode", [encode], threads=threads)[0].value
    decode = Item(payload=payload, out=out, shared_seed=1)
    return {
        "encode": lambda: codec.batch("encode", [encode], threads=threads),
        "decode": lambda: codec.batch("decode", [decode], threads=threads),
        "decode_add": lambda: codec.batch("decode_add", [decode], threads=threads),
        "merge": lambda: np.add(out, grad, out=out),
    }


def _median_ms(calls: Sequence[Callable[[], object]], seconds: float) -> float:
    """The median over repetitions and ranks; the ranks begin each repetition together."""
    start = time.perf_counter()
    for call in calls:
        call()
    warm = max(time.perf_counter() - start, 1e-9)
    repetitions = min(101, max(3, int(seconds / warm)))
    barrier = threading.Barrier(len(calls))

    def rank(call: Callable[[], object]) -> list[float]:
        times = []
        try:
            for _ in range(repetitions):
                barrier.wait()
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
        except BaseException:
            barrier.abort()  # or the other ranks would wait for this one
            raise
        return times

    with ThreadPoolExecutor(len(calls)) as pool:
        return 1e3 * statistics.median(itertools.chain.from_iterable(pool.map(rank, calls)))


def _cpu() -> str:
    """The processor's model; of the machine's architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
