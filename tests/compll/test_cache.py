"""What the compiler remembers: used while nothing changed, not when anything did; it mends itself."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from compll_cases import gradient, same_bits, write
from test_warnings import ODD

import compll
from compll import cache, driver, types
from compll.emit import cpp, cuda, numba

GENERATORS = {"cpp": (cpp, "source"), "numba": (numba, "source"), "cudasim": (cuda, "generate")}
WORK = ((driver, "parse"), (driver, "check"), (driver, "unit_of"), *GENERATORS.values())
SMALL = """
void SmallEncode(float* g, uint8* c, int by = 2) { float* x = g * by; c = concat(x); }
void SmallDecode(uint8* c, float* g, int by = 2) { float* x; extract(c, x); g = x / by; }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPLL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which every stage of the compiler adds itself when it runs."""
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            done.append(name)
            return real(*given, **named)

        return run

    for module, name in WORK:
        monkeypatch.setattr(module, name, counted(f"{module.__name__}.{name}", getattr(module, name)))
    return done


def encoded(codec: compll.Codec) -> Any:
    return codec.encode(gradient("normal", 1000), seed=5, state=codec.new_state(1000))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("backend", ["interp", *GENERATORS])
def test_what_was_compiled_before_is_neither_parsed_nor_generated_again(
    backend: str, work: list[str]
) -> None:
    path = write(SMALL)
    first = compll.compile(path, backend)
    assert work
    work.clear()
    again = compll.compile(path, backend)
    assert not work
    assert again.info == first.info
    assert same_bits(encoded(again), encoded(first))


@pytest.mark.usefixtures("folder")
def test_another_text_or_value_or_feedback_is_another_program(work: list[str]) -> None:
    path = write(SMALL)
    compll.compile(path, "interp")
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        (SMALL, {"by": 3}),
        (SMALL, {"error_feedback": True}),
        (SMALL.replace("g * by", "g * by + 1"), {}),
    )
    made = []
    for text, given in changes:
        path.write_text(text, "utf-8")
        work.clear()
        codec = compll.compile(path, "interp", **given)
        assert "compll.driver.parse" in work
        made.append(bytes(encoded(codec)))
    assert made[0] != made[1] != made[2]


@pytest.mark.usefixtures("folder")
def test_another_compiler_remembers_nothing(work: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compll.compile("int8", "interp")
    monkeypatch.setattr(cache, "_AT_IMPORT", "another")
    work.clear()
    compll.compile("int8", "interp")
    assert "compll.driver.parse" in work


def test_a_compiler_that_was_changed_while_it_ran_keeps_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_compiler", lambda: "edited")
    compll.compile("int8", "interp")
    assert not folder.exists()


@pytest.mark.parametrize("damage", [b"", b"half", bytes(3000)])
def test_damaged_entries_are_made_anew(folder: Path, work: list[str], damage: bytes) -> None:
    payload = encoded(compll.compile("onebit", "cpp"))
    entries = [p for kind in ("programs", "units", "cpp") for p in (folder / kind).iterdir()]
    assert len(entries) == 3
    for entry in entries:
        whole = entry.read_bytes()
        entry.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    work.clear()
    assert same_bits(encoded(compll.compile("onebit", "cpp")), payload)
    assert work
    work.clear()
    compll.compile("onebit", "cpp")
    assert not work


def test_where_nothing_can_be_written_programs_compile_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("COMPLL_CACHE", str(tmp_path / "file"))
    assert compll.compile("onebit", "interp").info.name == "onebit"


@pytest.mark.usefixtures("folder")
def test_warnings_are_told_each_time_at_the_caller_s_line() -> None:
    path = write(ODD)
    told = []
    for _ in range(2):
        with pytest.warns(compll.CompileWarning) as found:
            compll.compile(path, "interp")
        told.append([(str(w.message), w.filename) for w in found])
    assert told[0] == told[1]
    assert told[0][0][1] == __file__


@pytest.mark.parametrize("elem", [*types.NAMED.values(), types.uint(3)])
def test_an_element_type_is_the_same_after_pickling(elem: types.Elem) -> None:
    again = pickle.loads(pickle.dumps(elem))
    assert again == elem
    assert again is elem or elem.packed
