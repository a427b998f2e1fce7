"""Damaged and random payloads against the decoders of every shipped codec, under the sanitizers.

    python benchmarks/fuzz_payloads.py --inputs 1000000           writes benchmarks/results/fuzz_payloads.md
    python benchmarks/fuzz_payloads.py --codec onebit --seed 5    one codec, to look closer; writes nothing

The driver is C over the C ABI (tests/fuzz/payload_driver.c): buffers are blocks of the heap of exactly the
sizes that the ABI asks for, under -fsanitize=address,undefined.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import payload_driver  # noqa: E402 - the path is known only now
from rich.progress import track  # noqa: E402

import compll  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "fuzz_payloads.md"
STEPS = 20  # runs of the driver a codec: each shows in the progress bar, and has a seed of its own


def fuzz(codec: str, inputs: int, seed: int) -> tuple[dict[str, tuple[int, int]], str]:
    """Return how many inputs of each kind were decoded and refused, and what was found."""
    counts: dict[str, tuple[int, int]] = {}
    made = payload_driver.build(codec, "-O1")
    for step in track(range(STEPS), codec):
        part = payload_driver.run(*made, -(-inputs // STEPS), seed * STEPS + step)
        if part.wrong:
            return counts, f"seed {seed * STEPS + step}: {part.wrong}"
        for kind, (decoded, refused) in part.counts.items():
            before = counts.get(kind, (0, 0))
            counts[kind] = (before[0] + decoded, before[1] + refused)
    return counts, ""


def report(results: dict[str, dict[str, tuple[int, int]]], inputs: int, seed: int, seconds: float) -> str:
    """Return the result as a page."""
    date = subprocess.run(
        ["git", "log", "-1", "--format=%cs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    kinds = list(next(iter(results.values())))
    lines = [
        "# The decoders against damaged and random payloads",
        "",
        f"`python benchmarks/fuzz_payloads.py --inputs {inputs} --seed {seed}`, on the code of {date}:",
        f"{seconds:.0f} s. A C driver over the C ABI and the library of each shipped codec, both under the",
        "address and the undefined-behaviour sanitizer; every buffer is a heap block of exactly the size",
        "that the ABI asks for. An input is decoded or refused; anything else is a finding.",
        "",
        "**Findings: none.**",
        "",
        "Inputs decoded / refused:",
        "",
        f"| codec | {' | '.join(kinds)} | all |",
        "|---|" + "---:|" * (len(kinds) + 1),
    ]
    for codec, counts in results.items():
        cells = [f"{decoded:,} / {refused:,}" for decoded, refused in counts.values()]
        lines.append(f"| {codec} | {' | '.join(cells)} | {sum(map(sum, counts.values())):,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, and write the result unless something is found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="payloads a codec")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--codec", choices=[*compll.algorithms()], help="only this one")
    given = parser.parse_args()
    begin, results = time.monotonic(), {}
    for codec in [given.codec] if given.codec else compll.algorithms():
        results[codec], wrong = fuzz(codec, given.inputs, given.seed)
        if wrong:
            sys.exit(f"{codec}, {wrong}")
    page = report(results, given.inputs, given.seed, time.monotonic() - begin)
    if given.codec:
        print(page)
    else:
        RESULT.write_text(page, "utf-8")
        print(f"wrote {RESULT}")


if __name__ == "__main__":
    main()
