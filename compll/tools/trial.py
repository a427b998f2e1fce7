"""A codec on trial: everything that the library's tests do to the shipped ones, as one report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compll import driver
from compll.codec import Codec
from compll.errors import BackendError, ParameterError
from compll.tools import bench, compare, samples
from compll.tools.child import fuzz_apart
from compll.tools.compare import Comparison
from compll.tools.damage import Fuzz
from compll.tools.measure import Check, Fidelity, checks, fidelity

FAST = ("cpp", "numba", "cudasim", "cuda")  # what is compared with the interpreter
LONG = {"cudasim": 2**14}  # elements beyond which a backend takes too long
SHARES = {"cpp": 1.0, "interp": 0.2, "numba": 0.2, "cudasim": 0.03}  # of the payloads of a fuzz


@dataclass(frozen=True)
class Options:
    """What to try: the parameters of `compll.compile`, and how much of everything."""

    params: Mapping[str, float | int | bool] = field(default_factory=dict)
    error_feedback: bool = False
    backends: tuple[str, ...] = FAST
    n: int = 100_000
    seed: int = 1
    payloads: int = 2000


@dataclass(frozen=True)
class Absent:
    """A backend that cannot be used here, and why."""

    backend: str
    reason: str


@dataclass(frozen=True)
class Trial:
    """What was found out about a codec."""

    codec: str
    params: Mapping[str, float | int | bool]
    fingerprint: str
    properties: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    absent: tuple[Absent, ...]
    checks: tuple[Check, ...]
    fuzzes: tuple[Fuzz, ...]
    fidelity: tuple[Fidelity, ...]
    times: tuple[bench.Row, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """What does not hold; empty if the codec passed."""
        found = [f"{c.backend}: {d} differs" for c in self.comparisons for d in c.differences]
        found += [f"{c.claim}: {c.found}" for c in self.checks if c.passed is False]
        return (*found, *(f"{f.backend}: {f.wrong}" for f in self.fuzzes if f.wrong))


def run(source: driver.Source, options: Options) -> Iterator[str | Trial]:
    """Try a codec; yield what is being done, step by step, and at last the trial.

    Raises:
        CompileError, ParameterError: the program is wrong, or a parameter of it.
        BackendError: there is no backend by a name, or the only one that was named cannot be used here.

    """
    files = driver.find(source)
    program = driver.load(files, options.params, error_feedback=options.error_feedback)
    yield "the interpreter"
    reference = Codec(program, driver.build(program.checked, "interp"))
    sizes = dict.fromkeys((*compare.SIZES, options.n))
    cases = [compare.case(reference, label, n, options.seed) for label, n in compare.grid(sizes)]
    made: dict[str, Codec] = {}
    absent: list[Absent] = []
    comparisons: list[Comparison] = []
    for backend in options.backends:
        yield f"{backend} against the interpreter"
        try:
            made[backend] = Codec(program, driver.build(program.checked, backend))
        except BackendError as e:
            if backend not in driver.BACKENDS or len(options.backends) == 1:
                raise
            absent.append(Absent(backend, str(e).partition("\n")[0]))
            continue
        if backend != "interp":
            short = [c for c in cases if c.n <= LONG.get(backend, c.n)]
            comparisons.append(compare.compare(made[backend], short))
    in_memory = {name: c for name, c in made.items() if name != "cuda"}
    fast = in_memory.get("cpp") or in_memory.get("numba") or reference
    found: list[Check] = []
    yield "its properties"
    for check in checks(fast, program, cases):
        found.append(check)
        yield check.claim
    fuzzes = []
    for backend in dict.fromkeys((*in_memory, "interp")):
        yield f"damaged payloads, {backend}"
        if not options.payloads:
            continue
        inputs = max(90, int(options.payloads * SHARES[backend]))
        fuzzes.append(
            fuzz_apart(
                files,
                backend,
                inputs,
                options.seed,
                params=options.params,
                error_feedback=options.error_feedback,
            )
        )
    yield "what arrives"
    arrives = tuple(fidelity(fast, label, options.n) for label in samples.TAILS)
    yield "times"
    times = tuple(_times(bench.Made(program.info.name, fast, program), options.n))
    info = fast.info
    yield Trial(
        codec=info.name,
        params=dict(program.checked.values),
        fingerprint=info.fingerprint,
        properties=tuple(p for p in PROPERTIES if getattr(info, p)),
        comparisons=tuple(comparisons),
        absent=tuple(absent),
        checks=tuple(found),
        fuzzes=tuple(fuzzes),
        fidelity=arrives,
        times=times,
    )


PROPERTIES = (
    "exact_size",
    "unbiased",
    "summable",
    "stateful",
    "random",
    "keyed",
    "feedback",
    "hop",
    "sparse",
)


def _times(made: bench.Made, n: int) -> Iterator[bench.Row]:
    for row, _ in bench.measure(made, max(n, 1), 1, made.operations, 0.1):
        yield row


def backends(names: Sequence[str]) -> tuple[str, ...]:
    """Return the backends that names mean: "all" are those of FAST; `auto` is the fast one here.

    Raises:
        BackendError: there is none of that name.

    """
    if not names or "all" in names:
        return FAST
    return tuple(dict.fromkeys(driver.choose_backend(name) for name in names))


def source_of(names: Sequence[str]) -> driver.Source:
    """Return the one codec that words of a command line mean: a name, a file, or the two files of a pair.

    Raises:
        ParameterError: these are more.

    """
    if len(names) > 2:
        raise ParameterError("this takes one codec: a name, a file, or the two files of a pair")
    return names[0] if len(names) == 1 else (Path(names[0]), Path(names[1]))
