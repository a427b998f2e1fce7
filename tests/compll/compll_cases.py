"""What the compiler's tests share: small programs, gradients with every edge, and bit comparison."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from compll import build
from compll import codec as api
from compll.tools import samples
from compll.tools.samples import EDGES, LABELS, gradient, same_bits

__all__ = [
    "BACKENDS",
    "EDGES",
    "LABELS",
    "both",
    "compiled",
    "encode",
    "fields",
    "gradient",
    "same_bits",
    "write",
]

BACKENDS = ("interp", "cpp", "numba", "cudasim")


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="compll-tests-"))


def write(text: str, name: str = "") -> Path:
    """Write a program to a file of its own and return the path."""
    path = folder() / f"{name or hashlib.sha256(text.encode()).hexdigest()[:12]}.pse"
    path.write_text(text, "utf-8")
    return path


@functools.cache
def compiled(
    text: str, backend: str = "cpp", error_feedback: bool = False, level: str = "-O1", **params: Any
) -> api.Codec:
    """Compile a program; -O1 builds in a fifth of the time, and the shipped algorithms are tested at -O3."""
    flags = [level if flag == "-O3" else flag for flag in build.FLAGS]
    with mock.patch.object(build, "FLAGS", flags):
        return api.compile(write(text), backend, error_feedback=error_feedback, **params)


def both(text: str, **params: Any) -> tuple[api.Codec, api.Codec]:
    return compiled(text, "interp", **params), compiled(text, "cpp", **params)


def fields(payload: np.ndarray, kinds: list[str], n: int) -> list[np.ndarray]:
    """Cut a payload of vectors of n elements of NumPy types into those vectors."""
    out, at = [], 0
    for kind in kinds:
        at = -(-at // 16) * 16
        size = n * np.dtype(kind).itemsize
        out.append(np.frombuffer(payload[at : at + size].tobytes(), kind))
        at += size
    assert at == len(payload)
    return out


def encode(
    codec: api.Codec, grad: np.ndarray, seed: int = 7, **more: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Encode with a state that is not zero, where the codec keeps one; return payload and new state."""
    n = len(grad)
    state = samples.state(codec, n)
    payload = codec.encode(grad, seed=seed, state=state if state or codec.info.stateful else None, **more)
    return payload, state
