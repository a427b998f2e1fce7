"""Programs that compile and hardly mean what they say: what the compiler tells, and where it tells it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from compll_cases import write

import compll
from compll import driver

FOLDER = Path(__file__).parent / "warnings"
ROOT = Path(__file__).parents[2]
ODD = """
void OddEncode(float* gradient, uint8* compressed) {
    float top = reduce(gradient, 0, [&](float a, float b) -> float { return a + abs(b); });
    compressed = concat(top);
}
void OddDecode(uint8* compressed, float* gradient) {
    float top;
    extract(compressed, top);
    gradient = map(range(gradient.size), [&](int i) -> float { return top; });
}
"""
MESSAGE = "odd.pse:3:37: warning: the function of a reduction should be commutative: "


def told(path: Path) -> str:
    """Return what the compiler warns of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        driver.check_files([path], {})
    return "".join(f"{w.message}\n" for w in found).replace(str(path), path.name)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.pse")), ids=lambda p: p.stem)
def test_a_program_is_warned_of_as_the_text_beside_it_says(path: Path, update_golden: bool) -> None:
    golden = path.with_suffix(".txt")
    if update_golden:
        golden.write_text(told(path), "utf-8")
    assert told(path) == golden.read_text("utf-8")


def test_unlawful_reductions_are_told_and_lawful_ones_are_not() -> None:
    assert (FOLDER / "unlawful_reductions.txt").read_text().count(": warning: ") == 5
    assert (FOLDER / "lawful_reductions.txt").read_text() == ""


def test_compile_warns_at_the_line_that_calls_it_and_goes_on() -> None:
    with pytest.warns(compll.CompileWarning, match="odd.pse:3:37: warning: ") as found:
        codec = compll.compile(write(ODD, "odd"), "interp")
    assert [Path(w.filename).name for w in found] == ["test_warnings.py"]
    (diagnostic,) = found[0].message.diagnostics
    assert (diagnostic.severity, diagnostic.span.line) == ("warning", 3)
    assert codec.info.name == "odd"


def test_a_warning_made_an_error_is_raised() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", compll.CompileWarning)
        with pytest.raises(compll.CompileWarning, match="should be commutative"):
            compll.compile(write(ODD, "odd"), "interp", error_feedback=True)


def test_no_shipped_algorithm_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", compll.CompileWarning)
        for name in compll.algorithms():
            compll.compile(name, "interp", error_feedback=not compll.compile(name, "interp").info.feedback)


@pytest.mark.parametrize(
    "command",
    [["check"], ["build"], ["show", "--emit", "ir"], ["run", "--backend", "interp", "-n", "10"]],
    ids=" ".join,
)
def test_commands_print_warnings_once_to_stderr_and_go_on(command: list[str]) -> None:
    name, *options = command
    done = subprocess.run(
        [sys.executable, "-m", "compll", name, str(write(ODD, "odd")), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(MESSAGE) == done.stderr.count("warning") == 1
    assert "warning" not in done.stdout
    assert "Traceback" not in done.stderr
