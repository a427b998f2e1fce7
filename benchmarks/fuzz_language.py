"""The compiler against a million texts: an error of ours or a codec, never a crash, a hang or a defect.

    python benchmarks/fuzz_language.py --inputs 1000000      writes benchmarks/results/fuzz_language.md

Input k of a seed is always the same text (tests/fuzz/fuzz_inputs.py), so a run that was stopped goes on where
it was when the same command is given again. Each process works on a thousand inputs at a time under a limit
of memory, and is started anew for the next thousand; one that dies, or stays on one input, is a finding too.
Findings are made shorter and stand in benchmarks/results/findings/; the exit code is 1 if there are any.
One that today's code answers rightly, since it was mended while the run went on, is listed as mended.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "fuzz"))

import fuzz_inputs  # noqa: E402 - the path is known only now
import fuzz_minimise  # noqa: E402
import fuzz_oracle  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: E402

from compll import knobs  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CHUNK = 1000  # inputs of one process
RUN_EVERY = 4  # of the programs that are right, every fourth is also run by the interpreter
BACKENDS = tuple(fuzz_oracle.EMITTERS)  # they take turns: emitting is most of the work on a right program
MEMORY = 4 << 30  # bytes of address space of one process
STUCK = 300.0  # seconds on one input after which a process is ended
FORK = multiprocessing.get_context("fork")


@dataclass
class Progressed:
    """What a run has done so far; kept in a file, so that it can go on."""

    done: list[int] = field(default_factory=list)  # chunks
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # kind of input -> outcome -> inputs
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)  # signature -> number, text, detail
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def add(self, chunk: int, part: dict[str, Any]) -> None:
        """Take over what one process found."""
        self.done.append(chunk)
        self.cpu_seconds += part["cpu_seconds"]
        for kind, outcomes in part["outcomes"].items():
            mine = self.outcomes.setdefault(kind, {})
            for outcome, count in outcomes.items():
                mine[outcome] = mine.get(outcome, 0) + count
        for signature, finding in part["findings"].items():
            self.findings.setdefault(signature, finding)


def examine(
    seed: int, chunk: int, last: int, skip: frozenset[int], at: Synchronized[int], to: Connection
) -> None:
    """Work on the inputs of one chunk, and send what came out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    findings: dict[str, dict[str, Any]] = {}
    begin = time.process_time()
    for number in range(chunk * CHUNK, min((chunk + 1) * CHUNK, last)):
        at.value = number
        made = fuzz_inputs.make(seed, number)
        if number in skip:
            outcomes[made.kind]["finding"] += 1
            continue
        outcome = answer(number, made.text)
        if isinstance(outcome, fuzz_oracle.Finding):
            findings.setdefault(outcome.signature, shortened(number, made.text, outcome))
            outcome = "finding"
        outcomes[made.kind][outcome] += 1
    to.send({"outcomes": outcomes, "findings": findings, "cpu_seconds": time.process_time() - begin})


def answer(number: int, text: str) -> str | fuzz_oracle.Finding:
    """Return what the compiler makes of input `number`, or of a text in its place."""
    backend = BACKENDS[number // RUN_EVERY % len(BACKENDS)]
    return fuzz_oracle.examine(text, backends=(backend,), run=number % RUN_EVERY == 0)


def shortened(number: int, text: str, found: fuzz_oracle.Finding) -> dict[str, Any]:
    """Return a finding as it is kept, its text as short as some tries make it."""

    def same(other: str) -> bool:
        again = answer(number, other)
        return isinstance(again, fuzz_oracle.Finding) and again.signature == found.signature

    short = text if found.signature.startswith("TooLong") else fuzz_minimise.minimise(text, same)
    return {"number": number, "text": short, "detail": found.detail}


@dataclass
class Worker:
    """A process on one chunk; `at` is the input that it works on, `since` when that was last another one."""

    chunk: int
    process: Any
    at: Synchronized[int]
    answer: Connection
    seen: int = -1
    since: float = field(default_factory=time.monotonic)

    def is_stuck(self) -> bool:
        """Whether it has been on one input for too long."""
        if self.at.value != self.seen:
            self.seen, self.since = self.at.value, time.monotonic()
        return time.monotonic() - self.since > STUCK


def start(seed: int, chunk: int, last: int, skip: frozenset[int]) -> Worker:
    """Start a process on one chunk."""
    receiver, sender = FORK.Pipe(duplex=False)
    at = FORK.Value("q", -1)
    process = FORK.Process(target=examine, args=(seed, chunk, last, skip, at, sender), daemon=True)
    process.start()
    sender.close()
    return Worker(chunk, process, at, receiver)


def fuzz(seed: int, inputs: int, processes: int, kept: Path) -> Progressed:
    """Run what is left of a run, and return all of it."""
    state = Progressed(**json.loads(kept.read_text("utf-8"))) if kept.is_file() else Progressed()
    before, begin = state.seconds, time.monotonic()
    waiting = [chunk for chunk in range(-(-inputs // CHUNK)) if chunk not in set(state.done)][::-1]
    deadly: set[int] = set()
    workers: list[Worker] = []
    columns = (TextColumn("inputs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("findings: {task.fields[findings]}")) as progress:
        bar = progress.add_task("", total=inputs, findings=0)
        while waiting or workers:
            while waiting and len(workers) < processes:
                workers.append(start(seed, waiting.pop(), inputs, frozenset(deadly)))
            wait([w.answer for w in workers], timeout=5)
            for w in [w for w in workers if w.answer.poll() or w.is_stuck() or not w.process.is_alive()]:
                workers.remove(w)
                try:
                    if w.is_stuck():
                        w.process.kill()
                    state.add(w.chunk, w.answer.recv())
                except EOFError:  # it ended without an answer: the input it was on is to blame
                    number = w.at.value
                    how = "the process was stuck" if w.is_stuck() else "the process died"
                    text = fuzz_inputs.make(seed, number).text
                    state.findings.setdefault(how, {"number": number, "text": text, "detail": how})
                    deadly.add(number)
                    waiting.append(w.chunk)
                w.process.join()
            state.seconds = before + time.monotonic() - begin
            kept.write_text(json.dumps(vars(state)), "utf-8")
            done = sum(sum(o.values()) for o in state.outcomes.values())
            progress.update(bar, completed=done, findings=len(state.findings))
    return state


def still_there(state: Progressed) -> dict[str, dict[str, Any]]:
    """Return the findings that today's code answers wrongly."""
    again = {s: answer(f["number"], f["text"]) for s, f in state.findings.items()}
    return {s: state.findings[s] for s, a in again.items() if isinstance(a, fuzz_oracle.Finding)}


def report(state: Progressed, seed: int, processes: int) -> str:
    """Return the result as a page."""
    date = subprocess.run(
        ["git", "log", "-1", "--format=%cs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    total = sum(sum(o.values()) for o in state.outcomes.values())
    open_ = still_there(state)
    mended = state.findings.keys() - open_.keys()
    names = sorted({name for o in state.outcomes.values() for name in o})
    lines = [
        "# The compiler against texts of every kind",
        "",
        f"`python benchmarks/fuzz_language.py --inputs {total} --seed {seed} --processes {processes}`,",
        f"ended on the code of {date}: {state.seconds:,.0f} s, {state.cpu_seconds:,.0f} s of CPU.",
        "Each text goes through parser, checker and passes, and is emitted for cpp, numba or cuda; every",
        f"{RUN_EVERY}th program that is right is run by the interpreter, also on damaged payloads.",
        "A *finding* is any answer but a codec or an error of ours that names a place in the file.",
        "",
        f"**{total:,} inputs, findings: {len(open_) or 'none'}, mended: {len(mended) or 'none'}.**",
        "",
        "| input | " + " | ".join(names) + " | all |",
        "|---|" + "---:|" * (len(names) + 1),
    ]
    rows = {kind: [state.outcomes.get(kind, {}).get(n, 0) for n in names] for kind in fuzz_inputs.MAKERS}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    lines += [
        f"| {kind} | " + " | ".join(f"{c:,}" for c in [*row, sum(row)]) + " |" for kind, row in rows.items()
    ]
    lines += [""] if state.findings else []
    lines += [
        f"- `{s}`: input {f['number']}{', mended since' if s in mended else ''}"
        for s, f in state.findings.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz_language.md")
    given = parser.parse_args()
    fuzz_inputs.grammar()
    fuzz_oracle.examine(fuzz_inputs.corpus()[0][0], run=True)  # loads everything before processes are forked
    kept = knobs.cache_dir() / f"fuzz-language-{given.seed}-{given.inputs}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    state = fuzz(given.seed, given.inputs, given.processes, kept)
    given.output.write_text(report(state, given.seed, given.processes), "utf-8")
    open_ = still_there(state)
    for at, (signature, found) in enumerate(open_.items()):
        folder = given.output.parent / "findings"
        folder.mkdir(exist_ok=True)
        (folder / f"{at}.pse").write_text(found["text"], "utf-8")
        (folder / f"{at}.txt").write_text(f"{signature}\ninput {found['number']}\n{found['detail']}", "utf-8")
        print(f"{signature}: input {found['number']}, {folder / f'{at}.pse'}")
    kept.unlink()
    print(f"wrote {given.output}")
    sys.exit(1 if open_ else 0)


if __name__ == "__main__":
    main()
