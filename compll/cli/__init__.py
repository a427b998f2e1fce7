"""The `compll` command: one function a command, in the modules beside this one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from compll.cli import library, measuring, programs
from compll.cli.examples import epilog, exit_codes
from compll.errors import BackendError, CompileError, CompileWarning, ParameterError, PayloadError

app = typer.Typer(
    no_args_is_help=True,
    help="CompLL: compile gradient compression algorithms, and see what they do.",
    epilog=exit_codes(),
)
COMMANDS: dict[str, Callable[..., None]] = {
    "new": programs.new,
    "check": programs.check,
    "fmt": programs.fmt,
    "run": measuring.run,
    "bench": measuring.bench,
    "show": programs.show,
    "build": programs.build,
    "algorithms": library.algorithms,
    "generate": library.generate,
    "env": library.env,
}
for name, command in COMMANDS.items():
    app.command(name, epilog=epilog(name))(command)


def main() -> None:
    """Run the command; what the user did wrong ends in a message and exit code 1, never in a traceback."""
    try:
        with _warnings_as_messages():
            app()
    except (CompileError, ParameterError, PayloadError, BackendError, IndexError, OSError) as e:
        print(e if isinstance(e, CompileError) else f"compll: {e}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Print what the compiler warns of as it prints errors, each once: variants of a codec repeat it."""
    told: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not isinstance(message, CompileWarning):
                usual(message, category, *place, **more)
            elif str(message) not in told:
                told.add(str(message))
                print(message, file=sys.stderr)

        warnings.simplefilter("always", CompileWarning)
        warnings.showwarning = show
        yield
