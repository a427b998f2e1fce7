"""The `compll` command: what it prints, its exit codes, and that no error of the user's is a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compll_cases import write
from test_language import LEVELS
from typer.testing import CliRunner

from compll import codec as algorithms
from compll import generate
from compll.cli import COMMANDS, app, options
from compll.cli.examples import EXAMPLES, EXIT_CODES
from compll.errors import ParameterError
from compll.tools import trial

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
void SmallEncode(float* g, uint8* c) { c = concat(g); }
void SmallDecode(uint8* c, float* g) { float* v; extract(c, v); g = v; }
"""


def compll(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compll", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


def right(*args: str | Path, **environment: str) -> str:
    done = compll(*args, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_check_says_what_is_right() -> None:
    assert "terngrad(bitwidth=2): encode and decode are right" in right("check", "terngrad", "onebit")
    halves = SMALL.strip().splitlines()
    one, two = write(halves[0]), write(halves[1])
    assert "encode is right" in right("check", one)
    assert "decode is right" in right("check", two)
    assert "encode and decode are right" in right("check", one, two)
    assert right("check", write(LEVELS)).count("are right") == 8
    assert right("check", write(LEVELS), "--param", "bitwidth=3").count("are right") == 1


def test_show_prints_every_stage() -> None:
    for stage in generate.STAGES:  # what it prints is what lies in `generated/`, which has a test of its own
        text = (ROOT / "generated" / "onebit" / f"onebit.{generate.SUFFIXES.get(stage, stage)}").read_text()
        assert text.endswith(right("show", "onebit", "--emit", stage)[:-1]), stage
    assert right("show", "onebit") == right("show", "onebit", "--emit", "fused")
    launches = right("show", "onebit", "--emit", "launches")
    assert "hop: 4 launches, 2 of them over the elements\n  items onebit_hop_begin\n" in launches
    assert "hop onebit" in right("show", "onebit", "--emit", "fused")
    assert "residual" in right("show", "terngrad", "--emit", "ir", "--error-feedback")
    decode = write(SMALL.strip().splitlines()[1])
    assert "decode small" in right("show", decode, "--emit", "ir")


def test_build_writes_source_and_library(tmp_path: Path) -> None:
    out = right("build", write(SMALL), "-o", tmp_path, COMPLL_CACHE=str(tmp_path / "cache"))
    assert str(tmp_path / "small") in out
    names = {p.name for p in (tmp_path / "small").iterdir()}
    assert {"libsmall.so", "small.cpp", "compll.h"} <= names
    assert "lonely" in right("build", write("void LonelyEncode(float* g, uint8* c) { c = concat(g); }"))


def test_run_compares_with_the_interpreter() -> None:
    out = right("run", "onebit", "-n", "1000", "--backend", "auto", "--payloads", "0")
    assert "bit-equal" in out
    assert "DIFFER" not in out
    assert "feedback" in out.splitlines()[0]
    options = ("--param", "bitwidth=8", "--backend", "interp", "--error-feedback", "--payloads", "0")
    assert "everything that it claims holds" in right("run", "terngrad", "-n", "0", *options)


def test_algorithms_and_env_tell_what_is_there() -> None:
    out = CliRunner().invoke(app, ["algorithms"], env={"COLUMNS": "80"}).stdout
    rows = {words[0]: words for words in (line.split() for line in out.splitlines())}
    assert {*algorithms.algorithms()} <= set(rows), "a row was wrapped"
    assert rows["terngrad"][1:4] == ["16.0", "exact", "unbiased,"]
    assert max(map(len, out.splitlines())) <= 80
    wide = CliRunner().invoke(app, ["algorithms", "--wide"], env={"COLUMNS": "200"}).stdout
    assert "bitwidth=2" in next(line for line in wide.splitlines() if "│ terngrad " in line)
    table = json.loads(right("algorithms", "--json"))
    assert {row["name"]: row["parameters"] for row in table}["qsgd"] == {"bits": 3, "bucket": 512}
    assert here("algorithms", "--markdown") == (ROOT / "docs" / "algorithms.md").read_text("utf-8")
    assert json.loads(right("env", "--json", COMPLL_THREADS="3"))["threads (COMPLL_THREADS)"] == "3"
    out = right("env", COMPLL_CXX="nonexistent-compiler", COMPLL_THREADS="3")
    assert "nonexistent-compiler" in out
    assert "not there" in out


def here(*args: str | Path) -> str:
    """Return what a command prints, run in this process; what it raises is raised."""
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_check_tells_a_script_what_is_wrong_and_where() -> None:
    told = json.loads(here("check", write(LEVELS), "--json"))
    assert len(told["right"]) == 8
    assert told["right"][0]["functions"] == ["encode", "decode"]
    assert told["errors"] == []
    done = compll("check", write(BROKEN), "--json")
    assert done.returncode == 1
    first = json.loads(done.stdout)["errors"][0]
    assert (first["line"], first["message"]) == (1, "missing ';' after '1'")


def test_bench_measures_what_is_asked_for() -> None:
    args = ("--n", "2^12,3000", "--threads", "1,2", "--operation", "encode,feedback,hop", "--seconds", "0")
    rows = json.loads(here("bench", "terngrad", "topk", *args, "--backend", "interp", "--json"))
    found = {(r["codec"], r["operation"]) for r in rows}
    expected = {("terngrad", op) for op in ("encode", "hop", "feedback")}
    assert found == expected | {("topk", "encode"), ("topk", "feedback")}  # topk has no hop
    assert {(r["n"], r["threads"]) for r in rows} == {(n, t) for n in (4096, 3000) for t in (1, 2)}
    assert len(rows) == 4 * len(found)
    assert all(r["of_bound"] > 0 and r["backend"] == "interp" for r in rows)
    table = here("bench", "onebit", "--n", "2^14", "--operation", "decode", "--seconds", "0")
    assert table.splitlines()[-1].split()[:5] == ["onebit", "decode", "2^14", "cpp", "1"]


@pytest.mark.parametrize("kind", ["", "--state", "--sparse", "--random"])
def test_a_new_program_is_right_and_in_the_layout(kind: str, tmp_path: Path) -> None:
    here("new", "MyCodec", *([kind] if kind else []), "--folder", tmp_path)
    path = tmp_path / "mycodec.pse"
    text = path.read_text()
    assert text.count("//") >= 6
    assert "encode and decode are right" in here("check", path)
    assert here("fmt", "--check", path) == ""
    *_, found = trial.run(path, trial.Options(backends=("cpp",), n=3000, payloads=0))
    assert isinstance(found, trial.Trial)
    assert not found.failures
    with pytest.raises(ParameterError, match="is there already"):
        here("new", "MyCodec", "--folder", tmp_path)
    assert path.read_text() == text


def test_the_original_generator_s_flags_are_taken(tmp_path: Path) -> None:
    encode = tmp_path / "SmallEncode.pse"
    encode.write_text(SMALL.strip().splitlines()[0])
    assert "libsmall.so" in here("build", encode, "-b")
    for flags, words in (
        (("-w", "-r", "-f", "mxnet"), "-w -r -f mxnet: wrappers are not generated for mxnet"),
        (("-w",), "add -f"),
        (("-w", "-f", "torhc"), "did you mean 'torch'"),
        (("-f", "torch"), "belongs to -w or -r"),
        (("-r", "-f", "pytorch"), "use casync.torch"),
    ):
        with pytest.raises(ParameterError, match=words):
            here("build", encode, *flags)


def test_codecs_are_completed_by_name_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "terra.pse").touch()
    (tmp_path / "terra.txt").touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "own.pse").touch()
    assert options.complete("ter") == ["terngrad", "terra.pse"]
    assert options.complete("inn") == ["inner/"]
    assert options.complete("inner/") == ["inner/own.pse"]
    assert options.complete(f"{tmp_path}/te") == [f"{tmp_path}/terra.pse"]
    shell = {"_COMPLL_COMPLETE": "complete_bash", "COMP_WORDS": "compll run onebi", "COMP_CWORD": "2"}
    done = subprocess.run(
        [Path(sys.executable).parent / "compll"], capture_output=True, text=True, env=os.environ | shell
    )
    assert done.stdout.split() == ["onebit"]


def help_of(*args: str) -> str:
    done = CliRunner().invoke(app, [*args, "--help"], env={"COLUMNS": "110"}, color=False)
    assert done.exit_code == 0
    return " ".join(done.output.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_of_every_command(command: str) -> None:
    text = help_of(command)
    assert "Examples:" in text
    for line, what in EXAMPLES[command]:
        assert f"{line} {what}" in text


def test_help_says_what_exit_codes_mean() -> None:
    text = help_of()
    for code, what in EXIT_CODES:
        assert f"{code} {what}" in text


def test_generate_checks_and_writes(tmp_path: Path) -> None:
    target = tmp_path / "generated"
    done = compll("generate", "--folder", target)
    assert done.returncode == 0
    assert done.stdout.count("\n") == len(list(generate.texts()))
    assert "fresh" in right("generate", "--check", "--folder", target)
    (target / "onebit" / "onebit.ir").write_text("stale\n")
    done = compll("generate", "--check", "--folder", target)
    assert done.returncode == 1
    assert "is stale: run `compll generate`" in done.stderr
    assert "-stale" in done.stdout


BROKEN = "void BadEncode(float* g, uint8* c) { float a = 1 float b = 2; c = concat(h); }"
OUTSIDE = """
void OutEncode(float* g, uint8* c) {
    float* y = map(range(g.size), [&](int i) -> float { return g[i + 1]; });
    c = concat(y);
}
void OutDecode(uint8* c, float* g) { float* y; extract(c, y); g = y; }
"""


def mistakes(tmp_path: Path) -> dict[str, tuple[list[str | Path], str]]:
    binary = tmp_path / "binary.pse"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    afile = tmp_path / "file"
    afile.write_text("")
    return {
        "broken program": (["check", write(BROKEN)], "insert ';' here"),
        "unknown algorithm": (["check", "terngrat"], "did you mean 'terngrad'"),
        "missing file": (["check", tmp_path / "none.pse"], "there is no file"),
        "a folder": (["check", tmp_path], "there is no"),
        "no text": (["check", binary], "cannot read"),
        "unknown parameter": (["check", "terngrad", "-p", "width=3"], "no parameter 'width'"),
        "parameter without =": (["check", "terngrad", "-p", "bitwidth"], "name=value"),
        "parameter of letters": (["check", "terngrad", "-p", "bitwidth=two"], "no number"),
        "parameter out of range": (["build", "terngrad", "-p", "bitwidth=9"], "from 1 to 8"),
        "infinite parameter": (["check", "terngrad", "-p", "bitwidth=inf"], "bitwidth"),
        "unknown stage": (["show", "onebit", "--emit", "cp"], "did you mean 'cpp'"),
        "a framework's wrapper": (["build", "onebit", "-w", "-r", "-f", "mxnet"], "nothing was built"),
        "unknown operation": (["bench", "onebit", "--operation", "encod"], "did you mean 'encode'"),
        "a size of letters": (["bench", "onebit", "--n", "2^x"], "no number of elements"),
        "bench on a GPU": (["bench", "onebit", "--backend", "cuda"], "gpu.sh"),
        "a name that is none": (["new", "9lives"], "no name for a codec"),
        "two skeletons": (["new", "X", "--state", "--sparse"], "take one skeleton"),
        "nothing to format": (["fmt", tmp_path / "none.pse"], "cannot read"),
        "unknown backend": (["run", "onebit", "--backend", "cudo"], "no backend 'cudo'.*did you mean 'cuda'"),
        "decode is missing": (["run", write(SMALL.strip().splitlines()[0])], "has no Decode"),
        "no encode to build": (["build", write(SMALL.strip().splitlines()[1])], "Encode"),
        "too many files": (["run", "onebit", "terngrad", "onebit"], "one codec"),
        "two codecs to run": (["run", "onebit", "terngrad"], "no file|second"),
        "negative n": (["run", "onebit", "-n", "-5"], "greater than or equal to 0"),
        "negative seed": (["run", "onebit", "--seed", "-1"], "greater than or equal to 0"),
        "reads outside": (["run", write(OUTSIDE), "--backend", "interp"], "outside its range"),
        "feedback twice": (["build", "onebit", "--error-feedback"], "residual"),
        "output is a file": (["build", "onebit", "-o", afile], "file"),
        "generated is a file": (["generate", "--folder", afile], "file"),
    }


@pytest.mark.parametrize("number", range(29))
def test_a_mistake_ends_in_a_message_and_exit_code_1(number: int, tmp_path: Path) -> None:
    cases = mistakes(tmp_path)
    assert len(cases) == 29
    args, words = list(cases.values())[number]
    done = compll(*args)
    said = done.stderr + done.stdout
    assert "Traceback" not in said, said
    assert done.returncode in (1, 2), said
    assert re.search(words, said), said


def test_options_that_are_not_there_exit_with_2() -> None:
    for args in (
        ["chekc", "onebit"],
        ["check"],
        ["check", "onebit", "--unknown"],
        ["run", "onebit", "-n", "many"],
    ):
        done = compll(*args)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    assert compll("--help").returncode == 0


def test_a_missing_compiler_is_an_error_not_a_traceback() -> None:
    done = compll("build", write(SMALL), COMPLL_CXX="nonexistent-compiler")
    assert done.returncode == 1
    assert "COMPLL_CXX" in done.stderr
    assert "Traceback" not in done.stderr
    done = compll("run", write(SMALL), COMPLL_THREADS="none")
    assert done.returncode == 1
    assert "COMPLL_THREADS" in done.stderr
