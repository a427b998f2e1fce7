"""Source text -> loaded library, through a cache in the user's cache folder.

A build is keyed by everything that it depends on: source, headers, flags, compiler and CPU.  A lock keeps
two processes from building the same thing; the library appears under its name only when it is complete.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock

from compll import knobs
from compll.errors import BackendError

FLAGS = shlex.split(
    "-std=c++17 -O2 -fopenmp -fPIC -shared -fvisibility=hidden -fwrapv "
    "-fno-math-errno -fno-trapping-math -ffp-contract=off -fno-semantic-interposition -Wno-psabi"
)


def cpp_flags() -> list[str]:
    """Return the flags of `cpp`."""
    return [*FLAGS, f"-march={knobs.march()}"]


@functools.cache
def compiler_version(command: str) -> str:
    """Return what the compiler says of itself.

    Raises:
        BackendError: it is not there.

    """
    try:
        program = shlex.split(command)
    except ValueError:  # unbalanced quotes
        program = []
    mend = (
        "install g++, name another by COMPLL_CXX, take backend='numba' (pip install numba), "
        "or the slow reference by backend='interp'"
    )
    if not program or shutil.which(program[0]) is None:
        raise BackendError(f"the cpp backend needs a C++ compiler, and '{command}' is not there: {mend}")
    try:
        done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=False)
    except OSError as e:
        raise BackendError(
            f"the cpp backend needs a C++ compiler, and '{command}' cannot be run ({e.strerror}): {mend}"
        ) from e
    return done.stdout.partition("\n")[0]


@functools.cache
def cpu() -> str:
    """Return what `-march=native` depends on: the CPU's model and features."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        import platform

        return platform.processor()
    block = text.partition("\n\n")[0].splitlines()
    return "\n".join(
        line for line in block if line.startswith(("model name", "flags", "Features", "cpu family", "model"))
    )


def library(
    name: str, source: str, headers: Mapping[str, str], flags: Sequence[str] | None = None
) -> ctypes.CDLL:
    """Build (or find) and load the library of one generated source; `flags` defaults to `cpp_flags()`.

    Raises:
        BackendError: no compiler, or it refused the source (a bug of ours; its output is in the message).

    """
    path = library_path(name, source, headers, flags)
    with _patient_openmp():
        return ctypes.CDLL(str(path))


@contextmanager
def _patient_openmp() -> Iterator[None]:
    """Let OpenMP's threads sleep, not spin, when they wait: a user's own setting goes before.

    Training shares the cores with the kernels.  A team that spins for a thread which is not running took
    12 ms for an encode of 0.3 ms; asleep it took 0.6 ms (2^20 elements, two threads, one other process).
    libgomp reads this once, when it is loaded with the first library.
    """
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    if any(name in os.environ for name in names):
        yield
        return
    os.environ[names[0]] = "passive"
    try:
        yield
    finally:
        del os.environ[names[0]]


def library_path(
    name: str, source: str, headers: Mapping[str, str], flags: Sequence[str] | None = None
) -> Path:
    """Return the path of the built library, building it if it is not in the cache."""
    command, flags = knobs.compiler(), cpp_flags() if flags is None else flags
    parts = (source, *headers.values(), " ".join(flags), command, compiler_version(command), cpu())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    folder = knobs.cache_dir() / f"{name}-{key}"
    path = folder / f"lib{name}.so"
    if _is_whole(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(folder / "lock")):
            if not _is_whole(path):
                _compile([*shlex.split(command), *flags], name, source, headers, folder, path)
    except OSError as e:
        raise BackendError(f"cannot write to the cache '{folder}': {e}; name another by COMPLL_CACHE") from e
    return path


def _is_whole(path: Path) -> bool:
    """Whether a library is there and is what the compiler wrote: loading half a one would end the process."""
    try:
        return _digest(path) == path.with_suffix(".sha256").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(
    command: Sequence[str], name: str, source: str, headers: Mapping[str, str], folder: Path, path: Path
) -> None:
    for header, content in headers.items():
        (folder / header).write_text(content, "utf-8")
    text = folder / f"{name}.cpp"
    text.write_text(source, "utf-8")
    handle, made = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    done = subprocess.run([*command, "-o", made, str(text)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        Path(made).unlink(missing_ok=True)
        raise BackendError(f"'{command[0]}' refused the generated '{text}':\n{done.stderr.strip()[-4000:]}")
    path.with_suffix(".sha256").write_text(_digest(Path(made)), "ascii")
    Path(made).replace(path)
