"""What users write down: gradients' file, link speed, topology. Text in, values or a clear error out."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casync import listing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOPOLOGIES: Final = ("PS", "RING")
_BITS: Final = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", re.ASCII)


class SecopaError(ValueError):
    """Input that SeCoPa cannot plan with. The text says what, where and how to mend it."""


@dataclass(frozen=True)
class Gradient:
    """One gradient of the model: its name and its number of float32 elements (1 or more)."""

    name: str
    elements: int


def read_gradients(path: Path) -> tuple[Gradient, ...]:
    """Read `name,elements` lines; SecopaError lists every bad one (`casync.listing`)."""
    try:
        return tuple(Gradient(g.name, g.elements) for g in listing.read_gradients(path))
    except listing.ListingError as error:
        raise SecopaError(str(error)) from None


def parse_topology(text: str) -> str:
    """Return "PS" or "RING"; upper and lower case are equal. Raises SecopaError."""
    upper = text.upper()
    if upper in TOPOLOGIES:
        return upper
    close = difflib.get_close_matches(upper, TOPOLOGIES, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else "choose one of them"
    raise SecopaError(f"--topology {text}: unknown topology; there are {' and '.join(TOPOLOGIES)}: {hint}")


def parse_bandwidth(text: str) -> float:
    """Return bits a second of a text such as `100mbit` or `2.5 Gbit` (decimal units). Raises SecopaError."""
    return _quantity("--bandwidth", text, _BITS, "100mbit", positive=True)


def parse_latency(text: str) -> float:
    """Return seconds of a text such as `100us` or `1.5ms`. Raises SecopaError."""
    return _quantity("--latency", text, _SECONDS, "100us", positive=False)


def _quantity(option: str, text: str, units: dict[str, float], example: str, *, positive: bool) -> float:
    match = _QUANTITY.fullmatch(text.strip().lower())
    if match is None or match[2] not in units:
        raise SecopaError(
            f"{option} {text}: not a number with a unit of {', '.join(units)}; write e.g. {option} {example}"
        )
    value = float(match[1]) * units[match[2]]
    if positive and value == 0:
        raise SecopaError(f"{option} {text}: must be more than zero; write e.g. {option} {example}")
    return value


def parse_sizes(text: str) -> tuple[int, ...]:
    """Return the elements of a text such as `4096,65536,1048576`, ascending. Raises SecopaError."""
    fields = [field.strip() for field in text.split(",")]
    sizes = sorted({int(field) for field in fields if re.fullmatch("[0-9]{1,15}", field, re.ASCII)})
    if len(sizes) != len(fields) or len(sizes) < 3 or sizes[0] == 0:
        raise SecopaError(
            f"--sizes {text}: not three or more different numbers of elements; "
            "write e.g. --sizes 4096,65536,1048576"
        )
    return tuple(sizes)


def parse_params(texts: Sequence[str]) -> dict[str, bool | int | float]:
    """Return codec parameters of texts such as `bitwidth=4`. Raises SecopaError."""
    params: dict[str, bool | int | float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals or not value:
            raise SecopaError(f"--param {text}: not name=value; write e.g. --param bitwidth=4")
        if name in params:
            raise SecopaError(f"--param {text}: {name} is given twice; leave one out")
        try:
            params[name] = _value(value)
        except ValueError:
            raise SecopaError(
                f"--param {text}: {value} is no number, true or false; write e.g. --param bitwidth=4"
            ) from None
    return params


def _value(text: str) -> bool | int | float:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text, re.ASCII) else float(text)
