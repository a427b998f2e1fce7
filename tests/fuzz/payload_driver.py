"""Builds and runs payload_driver.c on the library that is generated for a codec."""

from __future__ import annotations

import functools
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compll import build as builder
from compll import codec as api
from compll import driver, knobs
from compll.backends import Packer
from compll.backends.cudasim import SANITIZERS
from compll.emit import cpp
from compll.types import NAMED

GROUP = 72  # inputs made of one payload: that of payload_driver.c
C_FLAGS = shlex.split("-x c -std=gnu11 -O1 -g -Wall -Wextra -Werror")
SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class Result:
    """How many inputs of each kind were decoded and refused; `wrong` is what the driver complained of."""

    counts: dict[str, tuple[int, int]]
    wrong: str = ""

    @property
    def inputs(self) -> int:
        """All inputs."""
        return sum(accepted + refused for accepted, refused in self.counts.values())


def flags(level: str) -> list[str]:
    """Return the flags of the cpp backend with sanitizers, at another level of optimisation."""
    return [level if flag.startswith("-O") else flag for flag in builder.cpp_flags()] + ["-g", *SANITIZERS]


@functools.cache
def folder() -> Path:
    """Return a folder for the programs."""
    return Path(tempfile.mkdtemp(prefix="compll-payloads-"))


@functools.cache
def build(
    source: api.Source, level: str, change: Callable[[str], str] = str, element: str = "float"
) -> tuple[Path, str]:
    """Generate, compile and link; return the program and the parameters that it takes.

    Args:
        source: the codec, as `compll.compile` takes it.
        level: of optimisation; -O0 builds ten times faster than -O1, and runs some ten times slower.
        change: what is done to the generated C++, to see the driver find it.
        element: of gradients: float, half or bfloat16.

    """
    program = driver.load(api.find(source), {})
    unit = driver.unit_of(program.checked, NAMED[element])
    text = change(cpp.source(unit))
    library = builder.library_path(f"{unit.codec}-sanitized", text, cpp.runtime(), flags(level))
    made = folder() / library.parent.name
    settings = {
        "CODEC": unit.codec,
        "STATES": len(program.encode.states),
        "SUFFIX": f"_{unit.suffix}",
        "BYTES": unit.element.bits // 8,
        "HOP": int(any(f.op == "hop" for f in unit.functions)),
    }
    command = [*shlex.split(knobs.compiler()), *C_FLAGS, *SANITIZERS]
    command += [f"-D{name}={value}" for name, value in settings.items()]
    command += [str(SOURCE), "-x", "none", str(library), f"-Wl,-rpath,{library.parent}", "-o", str(made)]
    subprocess.run(command, check=True)
    return made, Packer(unit.params).pack(program.checked.values).tobytes().hex()


def run(program: Path, parameters: str, inputs: int, seed: int = 0) -> Result:
    """Decode so many payloads, rounded up to whole groups, by what `build` has made."""
    groups = -(-inputs // GROUP)
    done = subprocess.run(
        [str(program), str(groups), str(seed), parameters], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return Result({}, done.stderr[-6000:] or f"exit code {done.returncode}")
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return Result({kind: (int(accepted), int(refused)) for kind, accepted, refused in rows})
