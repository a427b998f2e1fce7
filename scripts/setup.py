"""Make `.venv`: every pinned package, Horovod built from source, and this project, editable.

Needs only the standard library, a C++ compiler and make. Run it by `make setup`. What keeps it safe to kill:

- A step has a key, the hash of its inputs, and a stamp with the key of the last time that it went well.
  Where the two are equal, the step is skipped.
- A step that changes `.venv` leaves the mark `changing` while it works. Who finds that mark, or a `.venv`
  without stamps, throws the environment away by one rename and makes a new one; nothing half is repaired.
- The Horovod wheel is built in a scratch folder and renamed into the cache when it is whole.
- The lock is held by the child processes too, so a pip that outlives a killed set-up is waited for.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS = VENV / ".setup"
CHANGING = STAMPS / "changing"
CACHE = ROOT / ".cache" / "setup"
LOG = CACHE / "setup.log"
PYTHON = VENV / "bin" / "python"
BASE_PYTHON = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))

# Horovod's build files ask for C++14, which no setting overrides, and PyTorch's headers need C++20, so the
# compiler is called through a wrapper. Calls that ask for no standard, such as nvcc's, are left alone.
CXX_WRAPPER = """#!/bin/sh
for word; do
    shift
    case $word in -std=c++14 | -std=gnu++14) word=-std=c++20 ;; esac
    set -- "$@" "$word"
done
exec {cxx} "$@"
"""
HOROVOD_OPTIONS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
GIB_PER_COMPILER = 3  # Peak of one compiler process on PyTorch's headers, rounded up.

# What a log says -> how to mend it. The first match counts.
REMEDIES = (
    (r"No space left on device", "the disk is full: free some 4 GB, then run the command again"),
    (
        r"Killed signal|cc1plus.*[Kk]illed|internal compiler error: Killed",
        "the compiler ran out of memory: run `make setup JOBS=1`",
    ),
    (
        r"Temporary failure|NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|Network is unreachable",
        "pip cannot reach the package index: check network and proxy (`pip config list`), then run again",
    ),
    (
        r"No matching distribution found|Could not find a version",
        "a pinned version is not offered to this Python or platform: use Python 3.11 on Linux "
        "(`make setup PYTHON=python3.11`), or move the pin in constraints.txt",
    ),
    (
        r"CMake Error|Could NOT find",
        "Horovod's CMake run failed: the log says what it did not find",
    ),
)


class SetupError(Exception):
    """A step failed: `what` happened, and `mend` says how to go on."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


@dataclass(frozen=True)
class Step:
    """One step: it is skipped while its stamp holds `key`, the hash of its inputs."""

    name: str
    about: str
    key: str
    action: Callable[[], None]
    changes_venv: bool = True

    @property
    def done(self) -> bool:
        """Whether the step went well for these very inputs."""
        try:
            return (STAMPS / self.name).read_text() == self.key
        except OSError:
            return False


def digest(*parts: object) -> str:
    """Return a short hash of the parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def read_pins() -> dict[str, str]:
    """Return name -> requirement line of constraints.txt."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {line.partition("==")[0].lower(): line for line in lines if line}


def jobs() -> int:
    """Return how many compilers may run at once: a core each, and memory for each."""
    if chosen := os.environ.get("JOBS"):
        return int(chosen)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    return max(1, min(len(os.sched_getaffinity(0)), memory // GIB_PER_COMPILER))


class Console:
    """Shows which step is at work and for how long; the output of commands goes to the log."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.live = sys.stdout.isatty()
        self.label = ""
        self.began = 0.0

    def begin(self, number: int, about: str) -> None:
        """Announce a step."""
        self.label, self.began = f"[{number}/{self.total}] {about}", time.monotonic()
        print(self.label + (" ..." if not self.live else ""), end="" if self.live else "\n", flush=True)

    def tick(self) -> None:
        """Show the seconds so far, on a terminal."""
        if self.live:
            print(f"\r{self.label}  {time.monotonic() - self.began:.0f} s ", end="", flush=True)

    def end(self, outcome: str) -> None:
        """Close the step's line."""
        line = f"{self.label}  {outcome}, {time.monotonic() - self.began:.1f} s"
        print(("\r" if self.live else "") + line, flush=True)


class Setup:
    """The five steps in order, over one lock and one log."""

    def __init__(self) -> None:
        self.pins = read_pins()
        ordinary = [pin for name, pin in self.pins.items() if name not in ("horovod", "cmake")]
        linked = [self.pins[name] for name in ("horovod", "torch", "openmpi", "setuptools", "numpy")]
        recipe = (CXX_WRAPPER, sorted(HOROVOD_OPTIONS.items()), platform.machine(), ROOT)
        venv = digest("venv", sys.version, BASE_PYTHON, ROOT)
        packages = digest(venv, *ordinary)
        wheel = digest(sys.version, *linked, *recipe)
        self.ordinary = ordinary
        self.wheels = CACHE / "horovod" / wheel
        self.steps = (
            Step("venv", f"virtual environment of Python {platform.python_version()}", venv, self.make_venv),
            Step("packages", f"{len(ordinary)} pinned packages", packages, self.install_packages),
            Step(
                "wheel",
                "Horovod's wheel, from source (minutes)",
                digest(packages, wheel),
                self.build_horovod,
                changes_venv=False,
            ),
            Step(
                "horovod", "Horovod with PyTorch, MPI and Gloo", digest(packages, wheel), self.install_horovod
            ),
            Step(
                "project",
                "this project, editable",
                digest(packages, (ROOT / "pyproject.toml").read_text()),
                self.install_project,
            ),
        )
        self.console = Console(len(self.steps))
        self.lock = -1

    def up_to_date(self) -> bool:
        """Whether nothing is to be done."""
        return PYTHON.exists() and not CHANGING.exists() and all(step.done for step in self.steps)

    def run(self) -> None:
        """Bring everything up to date. Raises SetupError."""
        if self.up_to_date():
            print(f"set-up: up to date ({VENV.name})")
            return
        CACHE.mkdir(parents=True, exist_ok=True)
        self.take_lock()
        try:
            self.run_steps()
        finally:
            os.close(self.lock)
            self.lock = -1

    def run_steps(self) -> None:
        """Run what is not done; the caller holds the lock."""
        LOG.write_text("")
        shutil.rmtree(CACHE / "scratch", ignore_errors=True)
        if VENV.exists() and (not self.steps[0].done or CHANGING.exists() or not PYTHON.exists()):
            print(f"set-up: {VENV.name} is unfinished, or of another Python or place: making it anew")
            discard(VENV)
        for number, step in enumerate(self.steps, 1):
            if step.done:
                continue
            self.console.begin(number, step.about)
            if step.changes_venv and STAMPS.exists():
                CHANGING.write_text(step.name)
            step.action()
            write_atomically(STAMPS / step.name, step.key)
            CHANGING.unlink(missing_ok=True)
            self.console.end("done")
        print("set-up: done. `source .venv/bin/activate` puts compll, casync, secopa, horovodrun on PATH")

    def take_lock(self) -> None:
        """Wait until no other set-up, nor a child that one left, is at work."""
        self.lock = os.open(CACHE / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("set-up: another set-up is at work here; waiting for it to end", flush=True)
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    # Steps

    def make_venv(self) -> None:
        """Make `.venv` with pip in it."""
        try:
            import ensurepip  # noqa: F401
            import venv  # noqa: F401
        except ImportError as error:
            raise SetupError(
                f"{BASE_PYTHON} has no module {error.name}",
                "install it (Debian and Ubuntu: apt-get install python3-venv), or name another Python: "
                "make setup PYTHON=/path/to/python3.11",
            ) from None
        self.command([str(BASE_PYTHON), "-m", "venv", str(VENV)])
        STAMPS.mkdir()

    def install_packages(self) -> None:
        """Install every pinned package but those that are built here."""
        self.pip("install", *self.ordinary)
        self.pip("check")

    def build_horovod(self) -> None:
        """Build Horovod's wheel, unless the cache holds one of the same inputs."""
        if list(self.wheels.glob("*.whl")):
            return
        scratch = CACHE / "scratch"
        (scratch / "tmp").mkdir(parents=True)
        wrapper = scratch / "c++20"
        wrapper.write_text(CXX_WRAPPER.format(cxx=self.find_compiler(scratch)))
        wrapper.chmod(0o755)
        environment = {
            **HOROVOD_OPTIONS,
            "CXX": str(wrapper),
            "MAKEFLAGS": f"-j{jobs()}",
            "TMPDIR": str(scratch / "tmp"),
            "PATH": os.pathsep.join([*self.find_cmake(scratch), str(VENV / "bin"), os.environ["PATH"]]),
        }
        built = scratch / "wheel"
        options = ("--no-build-isolation", "--no-deps", "--no-binary", "horovod", "--no-cache-dir")
        self.pip("wheel", *options, "-w", str(built), self.pins["horovod"], environment=environment)
        self.wheels.parent.mkdir(exist_ok=True)
        shutil.rmtree(self.wheels, ignore_errors=True)
        built.rename(self.wheels)
        shutil.rmtree(scratch, ignore_errors=True)

    def install_horovod(self) -> None:
        """Install the wheel and load it once, so that a broken build is found here."""
        (wheel,) = self.wheels.glob("*.whl")
        self.pip("install", "--no-deps", "--force-reinstall", str(wheel))
        self.command(
            [str(PYTHON), "-c", "import horovod.torch as hvd; assert hvd.gloo_built() and hvd.mpi_built()"]
        )

    def install_project(self) -> None:
        """Install this project so that edits count at once."""
        self.pip("install", "--no-build-isolation", "--no-deps", "--editable", str(ROOT))
        self.pip("check")

    # Tools

    def find_compiler(self, scratch: Path) -> str:
        """Return the C++ compiler. Raises SetupError when there is none or it does not know C++20."""
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        mend = (
            "install it (Debian and Ubuntu: apt-get install g++ make), or name one: make setup CXX=/path/g++"
        )
        if not compiler:
            raise SetupError("there is no C++ compiler on PATH", mend)
        if not shutil.which("make"):
            raise SetupError("there is no `make` on PATH", mend)
        probe = scratch / "probe.cc"
        probe.write_text("#include <concepts>\nint main() { return 0; }\n")
        try:
            self.command([compiler, "-std=c++20", "-o", str(scratch / "probe"), str(probe)])
        except SetupError:
            raise SetupError(
                f"{compiler} cannot compile C++20", f"g++ 10 or newer is needed: {mend}"
            ) from None
        return compiler

    def find_cmake(self, scratch: Path) -> list[str]:
        """Return what PATH lacks: nothing if the system's CMake will do, else a pinned CMake's folder."""
        system = shutil.which("cmake")
        if system:
            answer = subprocess.run([system, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.search(r"version (\d+)", answer)
            if version and int(version[1]) < 4:
                return []
        target = scratch / "cmake"
        self.pip("install", "--no-deps", "--target", str(target), self.pins["cmake"])
        return [str(target / "cmake" / "data" / "bin")]

    def pip(self, verb: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        """Run pip of `.venv`, held to constraints.txt."""
        held = () if verb == "check" else ("--no-input", "--constraint", str(ROOT / "constraints.txt"))
        command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", verb, *held, *arguments]
        self.command(command, {"PIP_ROOT_USER_ACTION": "ignore", **(environment or {})})

    def command(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Run a command into the log. Raises SetupError with the log's end when it fails."""
        path = os.pathsep.join([str(VENV / "bin"), os.environ["PATH"]])
        settings = {**os.environ, "PATH": path, **(environment or {})}
        with LOG.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            child = subprocess.Popen(
                command,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=() if self.lock < 0 else (self.lock,),
            )
            while True:
                try:
                    code = child.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    self.console.tick()
        if code:
            text = LOG.read_text(errors="replace")
            fitting = (advice for pattern, advice in REMEDIES if re.search(pattern, text))
            tail = "\n".join(f"    {line}" for line in text.splitlines()[-25:])
            what = f"exit code {code} of: {' '.join(command)}\n{tail}"
            raise SetupError(what, next(fitting, "mend what the log names, then run the command again"))


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either whole or not there."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def discard(folder: Path) -> None:
    """Remove a folder so that nobody ever sees half of it."""
    trash = CACHE / "scratch" / f"trash-{os.getpid()}"
    trash.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def main() -> int:
    """Run the set-up; return the exit code."""
    setup = Setup()
    try:
        setup.run()
    except SetupError as error:
        setup.console.end("failed")
        print(f"\nset-up failed: {error.what}\n\nhow to mend it: {error.mend}", file=sys.stderr)
        print(f"the whole log: {LOG.relative_to(ROOT)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; run the command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
