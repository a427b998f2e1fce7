"""Show the whole path on real data: two compressors built, two plans made, six trainings compared.

Run by `make demo`. Every command is printed as one would type it. Ends with a table and a plot, both kept in
demo/, and fails if compression costs accuracy or the planner finds nothing to compress. `--record` (as
`make demo ARGS=--record`) keeps table and plot in benchmarks/results/ instead, for the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from demo_report import Outcome, conditions, draw, table, write_markdown

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("demo")
RECORDS = Path("benchmarks/results")
RANKS = 2
BANDWIDTH = "100mbit"
LAUNCH = ["horovodrun", "--gloo", "-np", str(RANKS), "-H", f"localhost:{RANKS}"]
LEAST_ACCURACY = 95.0  # of the uncompressed run, in percent
MOST_LOST = 1.5  # points that a compressed run may stay below the uncompressed one

# What a failed command says -> what to do. The first match counts.
REMEDIES = (
    (r"No module named '(compll|casync|secopa|horovod)", "the environment is not whole: run `make setup`"),
    (r"No space left on device", "the disk is full: free some space, then run `make demo` again"),
    (
        r"did not join|RendezvousError",
        "a rank could not reach the others: look for a firewall on the loopback",
    ),
    (r"horovodrun: not found|FileNotFoundError.*horovodrun", "Horovod is not installed: run `make setup`"),
)


class DemoError(Exception):
    """The demo cannot go on; the text says what happened and how to mend it."""


@dataclass(frozen=True)
class Run:
    """One training: its algorithm, its topology, and whether it obeys a plan."""

    algorithm: str
    topology: str
    planned: bool

    @property
    def name(self) -> str:
        """The run's name, also of its results' file."""
        return f"{self.algorithm}-{self.topology}"

    @property
    def results(self) -> Path:
        """Where the training writes its results."""
        return FOLDER / f"{self.name}.json"

    @property
    def command(self) -> list[str]:
        """The command that one would type."""
        choice = ["--algorithm", self.algorithm]
        if self.algorithm != "horovod":
            choice += ["--topology", self.topology]
        if self.planned:
            choice += ["--comprplan", str(plan_file(self.topology))]
        return [*LAUNCH, "python", "examples/train_digits.py", *choice, "--output", str(self.results)]


RUNS = (
    Run("horovod", "ring", planned=False),
    Run("none", "ring", planned=False),
    Run("terngrad", "ring", planned=True),
    Run("terngrad", "ps", planned=True),
    Run("onebit", "ring", planned=True),
    Run("onebit", "ps", planned=True),
)


def plan_file(topology: str) -> Path:
    """Return where the plan for a topology lies."""
    return FOLDER / f"SeCoPaPlan.{topology}.txt"


def execute(command: list[str], console: Console, progress: Progress | None = None, title: str = "") -> str:
    """Run a command, feed `step i/n  text` lines to a progress bar; return its output. Raises DemoError."""
    (progress.console if progress else console).print(f"[bold]$[/] {shlex.join(command)}", soft_wrap=True)
    bar = progress.add_task(f"{title}: starting", total=None) if progress else None
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line)
            found = re.search(r"step (\d+)/(\d+)\s+(.*)", line)
            if progress and bar is not None and found:
                text = f"{title}: {found[3]}"
                progress.update(bar, completed=int(found[1]), total=int(found[2]), description=text)
    output = "".join(lines)
    if child.returncode:
        mend = next((advice for pattern, advice in REMEDIES if re.search(pattern, output)), None)
        ranks = [line for line in lines if re.match(r"\[\d+\]<", line)]  # the launcher's own trace says less
        raise DemoError(
            f"exit code {child.returncode} of: {shlex.join(command)}\n\n{''.join((ranks or lines)[-40:])}\n"
            f"how to mend it: {mend or 'run that command by itself, in .venv, and mend what it reports'}"
        )
    return output


def build_and_plan(console: Console) -> None:
    """Build both compressors and make both plans. Raises DemoError if no gradient is worth compressing."""
    console.rule("Two compressors: from .pse to kernels")
    for name in ("terngrad", "onebit"):
        console.print(
            execute(["compll", "build", f"compll/algorithms/{name}.pse"], console).rstrip(), style="dim"
        )
    console.rule(f"Two plans: {RANKS} nodes, a link of {BANDWIDTH}")
    gradients = FOLDER / "input.txt"
    execute(["python", "examples/train_digits.py", "--write-gradients", str(gradients)], console)
    for topology in ("ps", "ring"):
        plan = plan_file(topology)
        cluster = ["--topology", topology.upper(), "--nnodes", str(RANKS), "--bandwidth", BANDWIDTH]
        here = ["--codec", "terngrad", "--local-ranks", str(RANKS)]
        command = ["secopa", "plan", "--input", str(gradients), *cluster, *here, "--output", str(plan)]
        console.print(execute(command, console).rstrip(), style="dim")
        marked = re.findall(r"^([^#,]+),y,", (ROOT / plan).read_text(), re.MULTILINE)
        if not marked:
            raise DemoError(
                f"{plan} compresses no gradient, though a dense layer of 131,072 elements should pay at "
                f"{BANDWIDTH}: look at `secopa plan --reasons`, and measure again on an idle machine"
            )
        console.print(f"compressed: {', '.join(marked)}")


def train_all(console: Console) -> list[Outcome]:
    """Run the six trainings, one after the other."""
    console.rule(f"Six trainings on {RANKS} ranks: handwritten digits")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        for run in RUNS:
            (ROOT / run.results).unlink(missing_ok=True)
            execute(run.command, console, progress, run.name)
    return [Outcome(**json.loads((ROOT / run.results).read_text())) for run in RUNS]


def check(outcomes: list[Outcome]) -> None:
    """Raise DemoError where compression cost more accuracy than it may, or nothing was learnt."""
    plain = next(outcome for outcome in outcomes if outcome.algorithm == "none")
    if plain.test_accuracy <= LEAST_ACCURACY:
        raise DemoError(
            f"the uncompressed run reached only {plain.test_accuracy:.2f} %, not above {LEAST_ACCURACY} %: "
            "training itself is broken; compare with Horovod's row"
        )
    for outcome in outcomes:
        lost = plain.test_accuracy - outcome.test_accuracy
        if outcome.compressed and lost > MOST_LOST:
            raise DemoError(
                f"{outcome.title} reached {outcome.test_accuracy:.2f} %, {lost:.2f} points below the plain "
                f"{plain.test_accuracy:.2f} %, more than {MOST_LOST}: a wrong round trip or residual"
            )


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description="Show the whole path on real data.")
    parser.add_argument("--record", action="store_true", help=f"keep table and plot in {RECORDS}/")
    results = RECORDS if parser.parse_args().record else FOLDER
    os.chdir(ROOT)
    os.environ["PATH"] = os.pathsep.join([str(ROOT / ".venv" / "bin"), os.environ["PATH"]])
    console = Console()
    began, load = time.monotonic(), os.getloadavg()[0]
    FOLDER.mkdir(exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    try:
        build_and_plan(console)
        outcomes = train_all(console)
        console.rule("Outcome")
        console.print(table(outcomes))
        plot = results / "demo.png"
        draw(outcomes, plot)
        facts = conditions(RANKS, BANDWIDTH, load)
        write_markdown(outcomes, facts, results / "demo.md", plot.name)
        record = {"conditions": facts, "runs": [outcome.record() for outcome in outcomes]}
        (results / "demo.json").write_text(json.dumps(record) + "\n")
        check(outcomes)
    except DemoError as error:
        console.print(f"\nthe demo failed: {error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nthe demo was interrupted; run `make demo` to start it again")
        return 130
    console.print(f"plot: {plot}   table: {results / 'demo.md'}   {time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
