"""What the commands have in common: their arguments, and what these mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compll import arrays, driver
from compll import codec as api
from compll.check.parameters import Values
from compll.errors import ParameterError


def complete(incomplete: str) -> list[str]:
    """Return what may stand for a codec: names of shipped algorithms, `.pse` files, and folders with a /."""
    names = [name for name in driver.algorithms() if name.startswith(incomplete)]
    folder, _, start = incomplete.rpartition("/")
    place = Path(folder) if folder else Path("/" if incomplete.startswith("/") else ".")
    if not place.is_dir():
        return names
    found = sorted(p for p in place.iterdir() if p.name.startswith(start) and not p.name.startswith("."))
    before = incomplete[: len(incomplete) - len(start)]
    files = [before + p.name for p in found if p.suffix == ".pse"]
    return [*names, *files, *(f"{before}{p.name}/" for p in found if p.is_dir())]


Sources = Annotated[
    list[str],
    typer.Argument(
        help="a shipped algorithm's name, a .pse file, or two files of one codec", autocompletion=complete
    ),
]
Params = Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value, may be repeated")]
Feedback = Annotated[bool, typer.Option("--error-feedback", help="add a residual to the codec")]
Gradient = Annotated[str, typer.Option("--dtype", help=f"of gradients: {' | '.join(arrays.GRADIENT)}")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


def codecs(sources: list[str]) -> list[tuple[Path, ...]]:
    """Return the files of each codec: a file with one function belongs to the file with its other one."""
    groups: list[tuple[Path, ...]] = []
    halves: dict[str, int] = {}
    for path in (path for source in sources for path in api.find(source)):
        head = driver.header_of([path])
        if head.codec in halves and head.has_encode != head.has_decode:
            groups[halves.pop(head.codec)] += (path,)
            continue
        if head.has_encode != head.has_decode:
            halves[head.codec] = len(groups)
        groups.append((path,))
    return groups


def values(params: list[str] | None) -> Values:
    """Return the parameters that `name=value` words give; ParameterError for what is none."""
    found: dict[str, float | int | bool] = {}
    for item in params or []:
        name, equals, text = item.partition("=")
        if not equals:
            raise ParameterError(f"--param {item}: write name=value")
        if text in ("true", "false"):
            found[name] = text == "true"
            continue
        try:
            found[name] = int(text, 0)
        except ValueError:
            try:
                found[name] = float(text)
            except ValueError:
                raise ParameterError(f"--param {item}: '{text}' is no number") from None
    return found


def words(text: str) -> list[str]:
    """Return the words of a list that commas separate."""
    return [word.strip() for word in text.split(",") if word.strip()]
