"""What the compiler's tests share: small programs, gradients with every edge, and bit comparison."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from compll import arrays, build, driver
from compll import codec as api
from compll.tools import samples
from compll.tools.samples import EDGES, LABELS, gradient, same_bits

__all__ = [
    "BACKENDS",
    "EDGES",
    "LABELS",
    "LEVELS",
    "both",
    "built_for",
    "compiled",
    "encode",
    "fields",
    "gradient",
    "same_bits",
    "write",
]

BACKENDS = ("interp", "cpp", "numba", "cudasim")
# Algorithms that use no part of the language which another does not, and that one.  `make test` has them on
# interp and cpp; on the other backends, under the sanitizers and for GPUs `make test-all` has them alone.
RELATIVES = {
    "bf16": "fp16",
    "identity": "fp16",
    "blocksign": "onebit",
    "efsignsgd": "onebit",
    "signsgd": "onebit",
    "dithering": "qsgd",
    "natural": "qsgd",
    "threshold": "graddrop",
    "int8minmax": "int8",
    "fp8e5m2": "fp8",
    "mxfp8": "mxfp4",
}

# What -march takes for processors of less wide registers, here those that this machine is one of.
LEVELS = {"x86_64": ("x86-64-v3", "x86-64-v2"), "aarch64": ("armv8-a",)}.get(platform.machine(), ())
if "avx2" not in build.cpu():
    LEVELS = LEVELS[-1:]


class OneLibrary(driver.Libraries):
    """A library that a test has built, for all that a codec runs."""

    def __init__(self, program: driver.Program, library: Any) -> None:
        self.library = library
        super().__init__(program.checked, {arrays.HOST: library.backend})

    def of(self, *_: Any, **__: Any) -> Any:
        return self.library


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="compll-tests-"))


def cross(*backends: str) -> list[Any]:
    """Return every shipped algorithm with each of the backends, as parameters of a test; see RELATIVES."""
    return [
        pytest.param(name, backend, marks=[pytest.mark.slow] if light(name, backend) else [])
        for name in api.algorithms()
        for backend in backends
    ]


def light(name: str, backend: str = "") -> bool:
    """Whether `make test` leaves an algorithm out on a backend."""
    return name in RELATIVES and backend not in ("interp", "cpp")


def once(names: Iterable[str]) -> list[Any]:
    """Return algorithms as parameters of a test that takes long for each; see RELATIVES."""
    return [pytest.param(name, marks=[pytest.mark.slow] if light(name) else []) for name in names]


def write(text: str, name: str = "") -> Path:
    """Write a program to a file of its own and return the path."""
    path = folder() / f"{name or hashlib.sha256(text.encode()).hexdigest()[:12]}.pse"
    path.write_text(text, "utf-8")
    return path


@functools.cache
def compiled(
    text: str, backend: str = "cpp", error_feedback: bool = False, level: str = "-O1", **params: Any
) -> api.Codec:
    """Compile a program; -O1 builds in half of the time, and other tests take what ships as users do."""
    flags = [level if flag.startswith("-O") else flag for flag in build.FLAGS]
    with mock.patch.object(build, "FLAGS", flags):
        return api.compile(write(text), backend, error_feedback=error_feedback, **params)


def built_for(march: str, source: str | Path) -> api.Codec:
    """Compile a codec on `cpp` for the processors that `-march` names, at -O1."""
    flags = ["-O1" if flag.startswith("-O") else flag for flag in build.FLAGS]
    with mock.patch.object(build, "FLAGS", flags), mock.patch.dict(os.environ, COMPLL_MARCH=march):
        return api.compile(source, "cpp")


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
