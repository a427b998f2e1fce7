"""Builds and runs payload_driver.c on the library that is generated for a codec."""

from __future__ import annotations

import functools
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compll import build as builder
from compll import codec as api
from compll import driver, knobs
from compll.backends import pack_parameters
from compll.backends.cudasim import SANITIZERS
from compll.emit import cpp

GROUP = 72  # inputs made of one payload: that of payload_driver.c
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


def flags() -> list[str]:
    """Return the flags of the cpp backend, with sanitizers and less optimisation."""
    changed = {"-O3": ["-O1", "-g"], "-shared": []}
    return [new for flag in builder.FLAGS for new in changed.get(flag, [flag])] + SANITIZERS


@functools.cache
def folder() -> Path:
    """Return a folder for what is built."""
    return Path(tempfile.mkdtemp(prefix="compll-payloads-"))


@functools.cache
def build(source: api.Source) -> tuple[Path, str]:
    """Generate, compile and link; return the program and the parameters that it takes.

    Raises:
        BackendError: the C++ backend does not build this codec.

    """
    program = driver.load(api.find(source), {})
    unit = driver.unit_of(program.checked)
    text = cpp.source(unit)
    here = folder() / unit.codec
    here.mkdir()
    for name, content in {**cpp.runtime(), "library.cpp": text}.items():
        (here / name).write_text(content, "utf-8")
    compiler, made = shlex.split(knobs.compiler()), here / "driver"
    names = [f"-DCODEC={unit.codec}", f"-DSTATES={len(program.encode.states)}"]
    c_flags = ["-x", "c", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *names, *SANITIZERS]
    for command in (
        [*compiler, *flags(), "-c", "library.cpp", "-o", "library.o"],
        [*compiler, *c_flags, "-c", str(SOURCE), "-o", "driver.o"],
        [*compiler, *flags(), "driver.o", "library.o", "-o", str(made)],
    ):
        subprocess.run(command, cwd=here, check=True)
    return made, pack_parameters(unit.params, program.checked.values).tobytes().hex()


def run(source: api.Source, inputs: int, seed: int = 0) -> Result:
    """Decode so many payloads, rounded up to whole groups, through the sanitized library of a codec."""
    program, parameters = build(source)
    groups = -(-inputs // GROUP)
    done = subprocess.run(
        [str(program), str(groups), str(seed), parameters], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return Result({}, done.stderr[-6000:] or f"exit code {done.returncode}")
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return Result({kind: (int(accepted), int(refused)) for kind, accepted, refused in rows})
