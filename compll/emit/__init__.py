"""Source text from the IR: Python decides, the Jinja templates lay out."""

from __future__ import annotations

import functools
import importlib.resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2  # takes long to import, and is not needed for what is remembered

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


def headers(folder: str) -> dict[str, str]:
    """Return the runtime headers of a backend: name -> text, such as `compll.h` of folder `cpp`."""
    files = importlib.resources.files("compll._templates").joinpath(folder).iterdir()
    return {
        f.name: f.read_text("utf-8")
        for f in sorted(files, key=lambda f: f.name)
        if f.name.endswith((".h", ".cuh"))
    }
