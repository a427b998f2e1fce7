"""Source text from the IR: Python decides, the Jinja templates lay out."""

from __future__ import annotations

import functools
import importlib.resources
from typing import Any

import jinja2


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("compll._templates", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(template: str, **context: Any) -> str:
    """Return a template's text; a name that the context lacks is an error."""
    return _environment().get_template(template).render(**context)


def header(name: str) -> str:
    """Return the text of a runtime header, such as `cpp/compll.h`."""
    return importlib.resources.files("compll._templates").joinpath(name).read_text("utf-8")
