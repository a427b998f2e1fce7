"""The cache of built libraries: hits, two builders at once, broken entries, and compilers that are no use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import write

import compll
from compll import build, knobs

SMALL = """
void SmallEncode(float* g, uint8* c) { c = concat(g); }
void SmallDecode(uint8* c, float* g) { float* v; extract(c, v); g = v; }
"""
PROBE = """
import sys, compll, numpy as np
print(bytes(compll.compile(sys.argv[1], 'cpp').encode(np.ones(3, np.float32))).hex())
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPLL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which every run of the compiler is added."""
    runs: list[str] = []
    real = build._compile

    def counted(*args: object) -> None:
        runs.append(str(args[1]))
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "_compile", counted)
    return runs


def works(codec: compll.Codec) -> bool:
    return bool(codec.decode(codec.encode(np.ones(3, np.float32)), 3).tolist() == [1, 1, 1])


def test_a_second_compile_takes_the_library_from_the_cache(cache: Path, compiles: list[str]) -> None:
    assert works(compll.compile(write(SMALL), "cpp"))
    assert works(compll.compile(write(SMALL), "cpp"))
    assert compiles == ["small"]
    (library,) = cache.glob("small-*/libsmall.so")
    assert library.with_name("small.cpp").is_file()
    assert not list(library.parent.glob("tmp*"))
    assert works(compll.compile(write("// another comment\n" + SMALL), "cpp"))
    assert len(compiles) == 1
    assert works(
        compll.compile(
            write(SMALL.replace("float* v", "float* w").replace(", v)", ", w)").replace("= v", "= 1 * w")),
            "cpp",
        )
    )
    assert len(compiles) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "noise"])
def test_a_broken_cache_entry_mends_itself(cache: Path, damage: str) -> None:
    run = [sys.executable, "-c", PROBE, str(write(SMALL))]
    first = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    (library,) = cache.glob("small-*/libsmall.so")
    whole = library.read_bytes()
    half = whole[: len(whole) // 2]
    library.write_bytes({"empty": b"", "half": half, "noise": half + bytes(len(whole) - len(half))}[damage])
    again = subprocess.run(run, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first
    assert len(library.read_bytes()) == len(whole)


def test_two_processes_may_build_the_same_program_at_once(cache: Path) -> None:
    run = [sys.executable, "-c", PROBE, str(write(SMALL))]
    both = [
        subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    answers = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(list(cache.glob("small-*/*.so"))) == 1


def script(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("nonexistent-compiler", "'nonexistent-compiler' is not there.*COMPLL_CXX.*interp"),
        ("   ", "COMPLL_CXX"),
        ("g++ 'unbalanced", "COMPLL_CXX"),
    ],
)
def test_a_compiler_that_is_not_there_is_a_clear_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    monkeypatch.setenv("COMPLL_CXX", command)
    with pytest.raises(compll.BackendError, match=words):
        compll.compile(write(SMALL), "cpp")
    assert works(compll.compile(write(SMALL), "interp"))
    assert not list(cache.rglob("*.so"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/bin/sh\necho broken compiler >&2\nexit 3\n", "broken compiler"),
        ("no program at all\n", "cannot be run|refused|broken"),
    ],
)
def test_a_compiler_that_fails_is_a_clear_error(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setenv("COMPLL_CXX", script(tmp_path, "compiler", text))
    with pytest.raises(compll.BackendError, match=words):
        compll.compile(write(SMALL), "cpp")
    assert not list(cache.glob("*/*.so"))


def test_a_compiler_with_options_is_one_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLL_CXX", "g++ -O1")
    assert works(compll.compile(write(SMALL), "cpp"))
    assert list(cache.glob("small-*"))


def test_a_cache_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        monkeypatch.setenv("COMPLL_CACHE", str(place))
        with pytest.raises(compll.BackendError, match="COMPLL_CACHE"):
            compll.compile(write(SMALL), "cpp")


def test_the_environment_chooses_backend_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLL_BACKEND", "interp")
    assert compll.compile("onebit").backend == "interp"
    monkeypatch.setenv("COMPLL_BACKEND", "fortran")
    with pytest.raises(compll.BackendError, match="fortran"):
        compll.compile("onebit")
    monkeypatch.setenv("COMPLL_BACKEND", "auto")
    codec = compll.compile("onebit")
    assert codec.backend == "cpp"
    for bad in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("COMPLL_THREADS", bad)
        knobs.threads.cache_clear()
        with pytest.raises(compll.BackendError, match="COMPLL_THREADS"):
            codec.encode(np.ones(4, np.float32), state=codec.new_state(4))
