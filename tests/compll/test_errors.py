"""Golden tests of messages: every invalid program in `errors/` beside the text that it is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from compll import codec as api
from compll import driver

FOLDER = Path(__file__).parent / "errors"
PROGRAMS = sorted(FOLDER.glob("*.pse"))


def answer(path: Path) -> str:
    """Return what the compiler says; a file may name parameters in a first line `// with name=value`."""
    first = path.read_text("utf-8").partition("\n")[0]
    given: dict[str, float] = {}
    if first.startswith("// with "):
        given = {k: float(v) for k, v in (item.split("=") for item in first[8:].split())}
    with pytest.raises((api.CompileError, api.ParameterError)) as e:
        for checked in driver.check_files([path], given):
            driver.program_of(checked)
    return str(e.value).replace(str(path), path.name) + "\n"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_an_invalid_program_is_answered_with_the_text_beside_it(path: Path, update_golden: bool) -> None:
    text = answer(path)
    golden = path.with_suffix(".txt")
    if update_golden:
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_every_message_has_a_place_and_a_caret(path: Path) -> None:
    text = answer(path)
    for line in text.splitlines():
        if ": error: " in line:
            place = line.partition(": error: ")[0].split(":")
            assert place[0] == path.name
            assert int(place[1]) >= 1
            assert int(place[2]) >= 1
    assert text.count(": error: ") == sum(
        1 for line in text.splitlines() if line.strip().startswith("| ") and "^" in line
    )


def test_there_are_many_programs_and_no_text_without_one() -> None:
    assert len(PROGRAMS) >= 100
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.stem for p in PROGRAMS}


def test_all_errors_of_a_file_are_reported_at_once() -> None:
    with pytest.raises(api.CompileError) as e:
        api.compile(FOLDER / "many_at_once.pse", "interp")
    assert len(e.value.diagnostics) == 7
    lines = [d.span.line for d in e.value.diagnostics]
    assert lines == sorted(lines)


def test_errors_of_both_files_are_reported_at_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pse", tmp_path / "two.pse"
    one.write_text("void XEncode(float* g, uint8* c) { c = concat(g) }")
    two.write_text("void XDecode(uint8* c, float* g) { extract(c, g }")
    with pytest.raises(api.CompileError) as e:
        api.compile((one, two), "interp")
    assert {Path(d.span.file).name for d in e.value.diagnostics} == {"one.pse", "two.pse"}
