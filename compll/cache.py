"""What the compiler worked out before, in the user's cache folder, so that no process does it again.

An entry is known by all that it was made of; the compiler's own files, Python and NumPy are part of it.
Entries are pickles: who can write to the folder can run code by the libraries in it anyway.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from compll import knobs

T = TypeVar("T")

PARTS = {"compll": (".py",), "compll._grammar": (".lark",), "compll._templates": (".j2", ".h", ".cuh")}
DIGEST = hashlib.sha256().digest_size
UNREADABLE = (OSError, pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError)


def key(*parts: object) -> str:
    """Return a key of values that `repr` tells apart; none, "", where the compiler's files cannot be read."""
    if not _AT_IMPORT:
        return ""
    return hashlib.sha256(repr((_AT_IMPORT, sys.version, np.__version__, parts)).encode()).hexdigest()[:32]


def remembered(what: str, known: str, make: Callable[[], T]) -> T:
    """Return what `make` makes, or what it made for the same key before; for the key "" nothing is known.

    What cannot be read, or is not whole, is made anew; where nothing can be written, nothing is kept.
    """
    if not known:
        return make()
    path = knobs.cache_dir() / what / known
    with suppress(*UNREADABLE):
        raw = path.read_bytes()
        if hashlib.sha256(raw[DIGEST:]).digest() == raw[:DIGEST]:
            return cast("T", pickle.loads(raw[DIGEST:]))
    made = make()
    if _compiler() == _AT_IMPORT:  # else its files changed since, and the key may not be that of what ran
        with suppress(OSError, RecursionError):
            _keep(path, pickle.dumps(made))
    return made


def _keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _compiler() -> str:
    """Return a digest of the compiler's own files; "" if they are not there as files."""
    digest = hashlib.sha256()
    for package, ends in PARTS.items():
        paths = [p for p in _files(Path(str(importlib.resources.files(package)))) if p.name.endswith(ends)]
        if not paths:
            return ""
        for path in sorted(paths):
            digest.update(repr(str(path)).encode() + path.read_bytes())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


_AT_IMPORT = _compiler()
