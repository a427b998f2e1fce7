"""The set-up skips what is done, and starts anew from what is half done."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.timeout(30)  # a lock that is never let go shows here


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return scripts/setup.py as a module that works in a folder of its own."""
    specification = importlib.util.spec_from_file_location("setup_script", ROOT / "scripts" / "setup.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "setup_script", module)
    specification.loader.exec_module(module)
    for name, place in {
        "VENV": ".venv",
        "STAMPS": ".venv/.setup",
        "CHANGING": ".venv/.setup/changing",
        "CACHE": ".cache",
        "LOG": ".cache/log",
        "PYTHON": ".venv/bin/python",
    }.items():
        monkeypatch.setattr(module, name, tmp_path / place)
    return module


def recorded(script: ModuleType, keys: dict[str, str], fail: str = "") -> tuple[object, list[str]]:
    """Return a set-up whose steps only record that they ran, and the record."""
    setup = script.Setup()
    ran: list[str] = []

    def action(name: str) -> None:
        ran.append(name)
        if name == "venv":
            script.STAMPS.mkdir(parents=True)
            script.PYTHON.parent.mkdir()
            script.PYTHON.touch()
        if name == fail:
            raise KeyboardInterrupt

    setup.steps = tuple(
        script.Step(name, name, key, lambda name=name: action(name), changes_venv=name != "wheel")
        for name, key in keys.items()
    )
    return setup, ran


KEYS = {"venv": "a", "packages": "b", "wheel": "c", "project": "d"}


def test_second_run_does_nothing_and_a_changed_input_only_its_step(script: ModuleType) -> None:
    setup, ran = recorded(script, KEYS)
    setup.run()
    assert ran == list(KEYS)
    again, ran = recorded(script, KEYS)
    again.run()
    assert ran == []
    changed, ran = recorded(script, {**KEYS, "project": "e"})
    changed.run()
    assert ran == ["project"]


@pytest.mark.parametrize(
    ("broken", "rerun"),
    [
        ("venv", list(KEYS)),
        ("packages", list(KEYS)),
        ("wheel", ["wheel", "project"]),
        ("project", list(KEYS)),
    ],
)
def test_what_was_interrupted_is_made_anew(script: ModuleType, broken: str, rerun: list[str]) -> None:
    interrupted, _ = recorded(script, KEYS, fail=broken)
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    mended, ran = recorded(script, KEYS)
    mended.run()
    assert ran == rerun
    assert mended.up_to_date()


def test_environment_without_stamps_or_python_is_made_anew(script: ModuleType) -> None:
    (script.VENV / "bin").mkdir(parents=True)
    setup, ran = recorded(script, KEYS)
    setup.run()
    assert ran == list(KEYS)
    script.PYTHON.unlink()
    setup, ran = recorded(script, KEYS)
    setup.run()
    assert ran == list(KEYS)


def test_two_set_ups_do_not_work_at_once(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.CACHE.mkdir()
    program = (
        "import fcntl, sys\nlock = open(sys.argv[1], 'w')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(script.CACHE / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout and holder.stdin
        holder.stdout.readline()
        reader = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill {holder.pid}"])
        script.Setup().take_lock()
        assert reader.wait() == 0
        assert holder.wait() != 0
    assert "another set-up is at work" in capsys.readouterr().out


def test_failed_command_shows_the_end_of_the_log_and_the_remedy(script: ModuleType) -> None:
    script.CACHE.mkdir()
    complaint = "OSError: No space left on device"
    with pytest.raises(script.SetupError) as caught:
        script.Setup().command([sys.executable, "-c", f"raise SystemExit({complaint!r})"])
    assert complaint in caught.value.what
    assert "disk is full" in caught.value.mend


def test_missing_compiler_is_an_error_that_names_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(script.SetupError, match="no C\\+\\+ compiler") as caught:
        script.Setup().find_compiler(script.CACHE)
    assert "g++" in caught.value.mend


@pytest.mark.parametrize(
    ("closing", "code"),
    [("9 passed in 2.24s", 0), ("1 failed, 8 passed in 2.24s", 2), ("869 deselected in 11.06s", 2)],
)
def test_ci_ends_with_pytests_closing_line_and_keeps_the_exit_code(
    tmp_path: Path, closing: str, code: int
) -> None:
    make = tmp_path / "make"
    make.write_text(
        f"#!/bin/sh\necho 'set-up: up to date'\necho '{closing}'\necho 'make: ***' >&2\nexit {code}\n"
    )
    make.chmod(0o755)
    environment = {**os.environ, "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]])}
    done = subprocess.run(
        [ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == closing
