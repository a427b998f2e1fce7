"""Commands about a program and what the compiler makes of it: `new`, `check`, `fmt`, `show`, `build`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from compll import arrays, driver
from compll import build as builder
from compll import generate as generated
from compll.cli.options import AsJson, Feedback, Gradient, Params, Sources, codecs, values
from compll.emit import cpp
from compll.errors import CompileError, ParameterError
from compll.tools import formatting, skeleton
from compll.types import FLOAT


def new(
    name: Annotated[str, typer.Argument(help="of the codec, such as MyQuantizer")],
    state: Annotated[bool, typer.Option("--state", help="keep a residual: error feedback")] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="send the greatest elements alone")] = False,
    random: Annotated[bool, typer.Option("--random", help="round at random, without bias")] = False,
    folder: Annotated[Path, typer.Option(help="where the file goes")] = Path(),
) -> None:
    """Write a commented program to begin with; it passes `compll run` as it stands."""
    kinds = [kind for kind, wanted in (("state", state), ("sparse", sparse), ("random", random)) if wanted]
    if len(kinds) > 1:
        raise ParameterError(f"--{kinds[0]} and --{kinds[1]}: take one skeleton, and add the other's lines")
    path = skeleton.write(name, *kinds, folder=folder)
    print(f"{path}: change it, then `compll run {path}`")


def check(sources: Sources, param: Params = None, as_json: AsJson = False) -> None:
    """Check a program and report all its errors at once."""
    found = []
    try:
        for paths in codecs(sources):
            for checked in driver.check_files(paths, values(param)):
                found.append((checked.label, [f.op for f in (checked.encode, checked.decode) if f]))
                if not as_json:
                    ops = found[-1][1]
                    print(f"{checked.label}: {' and '.join(ops)} {'are' if len(ops) > 1 else 'is'} right")
    except CompileError as e:
        if not as_json:
            raise
        errors = [
            {
                "file": d.span.file,
                "line": d.span.line,
                "column": d.span.column,
                "message": d.message,
                "note": d.note,
                "hint": d.hint,
            }
            for d in e.diagnostics
        ]
        print(json.dumps({"right": [], "errors": errors}, indent=2))
        raise typer.Exit(1) from None
    if as_json:
        right = [{"codec": label, "functions": ops} for label, ops in found]
        print(json.dumps({"right": right, "errors": []}, indent=2))


def fmt(
    files: Annotated[list[Path], typer.Argument(help=".pse files; - is standard input and output")],
    only_check: Annotated[
        bool, typer.Option("--check", help="change nothing; exit code 1 if a file would change")
    ] = False,
) -> None:
    """Write programs anew in the one layout: same meaning, same comments, same line breaks in statements."""
    stale = []
    for path in files:
        if str(path) == "-":
            print(formatting.formatted(sys.stdin.read(), "-"), end="")
            continue
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ParameterError(f"cannot read '{path}': {e}") from e
        made = formatting.formatted(text, str(path))
        if made == text:
            continue
        stale.append(path)
        print(f"{path}: {'would change' if only_check else 'formatted'}")
        if not only_check:
            path.write_text(made, "utf-8")
    if only_check and stale:
        raise typer.Exit(1)


def show(
    sources: Sources,
    emit: Annotated[str, typer.Option(help=" | ".join(generated.STAGES))] = "fused",
    param: Params = None,
    error_feedback: Feedback = False,
    dtype: Gradient = "float32",
) -> None:
    """Print a program at one stage of the compiler; `--dtype` is for its sources."""
    if emit not in generated.STAGES:
        hint = driver.did_you_mean(emit, generated.STAGES)
        raise ParameterError(
            f"--emit {emit}: the stages are {', '.join(generated.STAGES)}{'; ' + hint if hint else ''}"
        )
    for paths in codecs(sources):
        checked = driver.check_files(paths, values(param), error_feedback=error_feedback)[0]
        print(generated.stage(emit, driver.parse_files(paths)[0], checked, arrays.element(dtype)))


def build(
    sources: Sources,
    param: Params = None,
    error_feedback: Feedback = False,
    dtype: Gradient = "float32",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="copy source and library there")
    ] = None,
    body: Annotated[bool, typer.Option("--body", "-b", help="the kernels: built anyway")] = False,
    wrapper: Annotated[bool, typer.Option("--wrapper", "-w", help="a framework's wrapper too")] = False,
    register: Annotated[
        bool, typer.Option("--register", "-r", help="the wrapper's registration too")
    ] = False,
    framework: Annotated[
        str | None, typer.Option("--framework", "-f", help="of -w and -r: torch, tensorflow, mxnet")
    ] = None,
) -> None:
    """Generate and compile the C++ library; a width without default is built for every value.

    -b, -w, -r and -f are the flags of the published generator of HiPress.
    """
    del body
    if wrapper or register or framework:
        _refuse_wrapper(framework, wrapper=wrapper, register=register)
    for paths in codecs(sources):
        for checked in driver.check_files(paths, values(param), error_feedback=error_feedback):
            start = time.perf_counter()
            unit = driver.unit_of(checked, arrays.element(dtype))
            path = builder.library_path(checked.codec, cpp.source(unit), cpp.runtime())
            seconds = time.perf_counter() - start
            if output is not None:
                label = [checked.codec, *(f"{k}{v}" for k, v in checked.values.items())]
                label += [unit.suffix] if unit.element != FLOAT else []
                target = output / "-".join(label)
                target.mkdir(parents=True, exist_ok=True)
                for file in (path, *path.parent.glob("*.cpp"), *path.parent.glob("*.h")):
                    shutil.copy2(file, target)
                path = target / path.name
            print(f"{checked.label}: {path} ({seconds:.2f} s)")


FRAMEWORKS = ("torch", "tensorflow", "mxnet")


def _refuse_wrapper(framework: str | None, *, wrapper: bool, register: bool) -> None:
    """Say what to do instead of a wrapper; no framework has generated ones.

    Raises:
        ParameterError: always.

    """
    flags = " ".join(flag for flag, given in (("-w", wrapper), ("-r", register)) if given)
    if framework is None:
        raise ParameterError(f"{flags} needs the framework: add -f {' or -f '.join(FRAMEWORKS)}")
    known = {"pytorch": "torch", "tf": "tensorflow"}.get(framework, framework)
    if known not in FRAMEWORKS:
        hint = driver.did_you_mean(known, FRAMEWORKS)
        raise ParameterError(f"-f {framework}: the frameworks are {', '.join(FRAMEWORKS)}. {hint}".strip())
    if not flags:
        raise ParameterError(f"-f {framework} belongs to -w or -r; without them leave it away")
    use = {
        "torch": "use casync.torch, which takes codecs by name or file",
        "tensorflow": "build with -b, and call the library's C functions, which compll.h declares",
        "mxnet": "build with -b, and call the library's C functions, which compll.h declares",
    }[known]
    raise ParameterError(
        f"{flags} -f {framework}: wrappers are not generated for {known}: {use}; nothing was built"
    )
