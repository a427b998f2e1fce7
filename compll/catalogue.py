"""The table of the shipped algorithms: what each is, how long, how small its payloads are, who builds it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compll import driver
from compll.codec import Codec, algorithms
from compll.types import written

PICTURES = "pictures/algorithms"  # where those of `docs/algorithms.md` are, beside it
MEASURED = "benchmarks/results/convergence.md"
ELEMENTS = 2**20  # the length of gradient that sizes are given for
TRAINED = "quality.json"  # beside the programs; `benchmarks/convergence.py` writes it
PROPERTIES = ("unbiased", "summable", "stateful", "random", "keyed", "feedback", "hop", "sparse")


@dataclass(frozen=True)
class Trained:
    """How training with a codec ended beside float32: a task's mean loss of quality over seeds.

    `variant` is the codec with its parameters, perhaps with error feedback. `behind` is below 0 if it ended
    ahead, and counts if it exceeds `noise`.
    """

    variant: str
    task: str
    metric: str
    behind: float
    noise: float

    @property
    def verdict(self) -> str:
        """What is to be said of it."""
        if self.behind <= self.noise:
            return "within noise"
        return f"**{self.behind:.2f} behind** ({self.metric})"


@dataclass(frozen=True)
class Entry:
    """One shipped algorithm with its default parameters.

    `summary`, `source` and `when` (advice when to use it) are the header of its file; `lines` counts those
    that are neither blank nor comment; `bytes` is the payload of ELEMENTS elements, or the most that it can
    be if not `exact_size`. `trained`: how training ended, where that was measured.
    """

    name: str
    summary: str
    source: str
    when: str
    parameters: Mapping[str, float | int | bool]
    lines: int
    bytes: int
    ratio: float
    exact_size: bool
    properties: tuple[str, ...]
    nonfinite: str
    backends: tuple[str, ...]
    trained: tuple[Trained, ...]


def entries() -> list[Entry]:
    """Return an entry for every shipped algorithm, by name."""
    return [_entry(name, path) for name, path in algorithms().items()]


def _trained(path: Path) -> tuple[Trained, ...]:
    """What was measured of the codec of a program."""
    found = json.loads(path.with_name(TRAINED).read_text("utf-8"))
    return tuple(Trained(**one) for one in found.get(path.stem, ()))


def said(trained: Iterable[Trained]) -> list[str]:
    """A line a variant: how training with it ended in each task."""
    of_variant: dict[str, list[str]] = {}
    for one in trained:
        of_variant.setdefault(one.variant, []).append(f"{one.task} {one.verdict}")
    return [f"{variant}: {', '.join(verdicts)}" for variant, verdicts in of_variant.items()]


def code_lines(text: str) -> int:
    """Return how many lines of a program are neither blank nor comment."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return sum(1 for line in text.splitlines() if line.partition("//")[0].strip())


def _header(text: str) -> tuple[str, str, str]:
    """Return summary, source (up to the formula) and advice (after `When:`) of the first comment."""
    comment = itertools.takewhile(lambda line: line.startswith("//"), text.splitlines())
    first, *rest = (line.removeprefix("//") for line in comment)
    formula = next((at for at, line in enumerate(rest) if line.startswith("  ")), len(rest))
    advice = next((at for at, line in enumerate(rest) if line.startswith(" When: ")), len(rest))
    source, when = (
        " ".join(line.strip() for line in part) for part in (rest[: min(formula, advice)], rest[advice:])
    )
    return first.partition(": ")[2].strip(), source, when.removeprefix("When: ")


def _decimal(value: float | int | bool) -> float | int | bool:
    return float(written(value)) if isinstance(value, float) else value


def _entry(name: str, path: Path) -> Entry:
    program = driver.load([path], {})
    codec = Codec(program, driver.build(program.checked, "interp"))
    info, most = codec.info, codec.max_bytes(ELEMENTS)
    text = path.read_text("utf-8")
    summary, source, when = _header(text)
    return Entry(
        name=name,
        summary=summary,
        source=source,
        when=when,
        parameters={k: _decimal(p.value) for k, p in info.params.items()},
        lines=code_lines(text),
        bytes=most,
        ratio=round(4 * ELEMENTS / most, 1),
        exact_size=info.exact_size,
        properties=tuple(p for p in PROPERTIES if getattr(info, p)),
        nonfinite=info.nonfinite,
        backends=tuple(driver.BACKENDS),
        trained=_trained(path),
    )


HEADINGS = (
    "name",
    "parameters",
    "lines",
    f"bytes for {ELEMENTS:,}",
    "ratio",
    "size",
    "properties",
    "not finite",
    "backends",
)


def row(e: Entry) -> tuple[str, ...]:
    """Return what the table says of an algorithm, under HEADINGS."""
    return (
        e.name,
        ", ".join(f"{k}={v}" for k, v in e.parameters.items()) or "-",
        str(e.lines),
        f"{e.bytes:,}",
        str(e.ratio),
        "exact" if e.exact_size else "at most",
        ", ".join(e.properties) or "-",
        e.nonfinite,
        ", ".join(e.backends),
    )


ABSENT = (
    "## What is not among them",
    "",
    'THC (M. Li et al., "THC: Accelerating Distributed Deep Learning Using Tensor Homomorphic Compression",',
    "NSDI 2024) does not fit into one round. Its payloads are positions in a table whose entries can be",
    "summed without decoding; for that all workers quantize to one range, which they find by exchanging",
    "norms before any of them can encode, and the sum comes back with more bits than what was sent. A codec",
    "has one payload, made from its own gradient alone. What is of use alone is there: `hadamard4` rotates,",
    "`qsgd` and `terngrad` round at random.",
)


def markdown() -> str:
    """Return `docs/algorithms.md`."""
    found = entries()
    lines = [
        "# The shipped algorithms",
        "",
        "Made by `compll algorithms --markdown > docs/algorithms.md` from `compll/algorithms/`; do not edit.",
        "",
        "Lines are those of the `.pse` file that are neither blank nor comment. Bytes are the payload of a",
        f"gradient of {ELEMENTS:,} float32 elements with the default parameters; the ratio says how many",
        "times fewer these are, and `at most` that their number depends on the data. The properties are",
        "those of `codec.info`, which [the language's reference](../grammar/language.md) explains.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
        *("| " + " | ".join(row(e)) + " |" for e in found),
        "",
        "## What they are, when to use them, and from where",
        "",
        "The pictures, made by `compll algorithms --pictures docs/"
        + PICTURES
        + "`, show on the left a stretch of a",
        "gradient and what arrives of it in one step, and on the right what arrives of 4,096 elements.",
        "",
        "**Trained** says how two small models ended beside float32, with settings chosen for float32",
        f"([how it was measured](../{MEASURED})), where that was measured: behind is what ended worse than",
        "float32 by more than the noise between seeds.",
    ]
    for e in found:
        lines += [
            "",
            f"### {e.name}",
            "",
            e.summary[0].upper() + e.summary[1:],
            f"**When:** {e.when}",
            e.source,
        ]
        if e.trained:
            lines += ["", f"**Trained:** {'; '.join(said(e.trained))}."]
        lines += ["", f"![{e.name}: original and decoded values]({PICTURES}/{e.name}.png)"]
    return "\n".join([*lines, "", *ABSENT]) + "\n"
