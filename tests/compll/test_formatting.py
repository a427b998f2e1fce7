"""`compll fmt` changes layout alone: the same tokens, comments and typed IR; twice is once."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from compll_cases import write
from fuzz_programs import program
from test_compll_cli import compll as command
from test_compll_cli import right
from typer.testing import CliRunner

import compll
from compll import driver
from compll.cli import app
from compll.errors import CompileError
from compll.ir_text import function_text
from compll.parse import tokens
from compll.tools.formatting import formatted

SHIPPED = {name: path.read_text("utf-8") for name, path in compll.algorithms().items()}
GAPS = (
    " ",
    "\n",
    "\n\n\n",
    "\t",
    "\r\n",
    "  // {}\n",
    "\n// own {}\n",
    " /* in {} */ ",
    "\n/* two\n   {} */\n",
)

UGLY = """
void AEncode(float*g,uint8*c,[[range(0,9)]]float r=0.5){if(r>1){c=concat(g);}else{  // why
float* y=map(range(g.size),[&](int i)->float{float a=-g[i];
return a*-1;});uint<3>* z=y;


// what is sent
c=concat(y,
z);}}
param P{float x=1;};float f(float x){return x+1;}
void ADecode(uint8*c,float*g){float*v;uint<3>*z;extract(c,v,z);g=v;}"""
PRETTY = """\
void AEncode(float* g, uint8* c, [[range(0, 9)]] float r = 0.5) {
    if (r > 1) {
        c = concat(g);
    } else {  // why
        float* y = map(range(g.size), [&](int i) -> float {
            float a = -g[i];
            return a * -1;
        });
        uint<3>* z = y;

        // what is sent
        c = concat(y,
                   z);
    }
}

param P { float x = 1; };
float f(float x) { return x + 1; }
void ADecode(uint8* c, float* g) {
    float* v;
    uint<3>* z;
    extract(c, v, z);
    g = v;
}
"""


def ir_of(text: str) -> list[str]:
    """Return the typed IR, or what is wrong with the program, without places."""
    try:
        (checked,) = driver.check_files([write(text)], {})
    except CompileError as e:
        return sorted(d.message for d in e.diagnostics)
    return [function_text(f) for f in (checked.encode, checked.decode) if f]


def strewn(text: str, seed: int) -> str:
    """Return a program with line breaks and comments between any two tokens."""
    r, out = random.Random(seed), ""
    for number, token in enumerate(tokens(text, "x")[1]):
        glued = out.endswith(("uint", "random", "cast", "bitcast"))  # before a <, which must be next
        out += r.choice(GAPS).format(number) if r.random() < 0.3 and not glued else " "
        out += str(token)
    return out


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_programs_are_in_the_layout(name: str) -> None:
    assert formatted(SHIPPED[name], name) == SHIPPED[name]


def test_what_the_layout_is() -> None:
    assert formatted(UGLY, "ugly") == PRETTY


@pytest.mark.parametrize("name", ["dgc", "fp8", "mxfp4", "qsgd", "sidco"])
def test_the_meaning_of_a_shipped_program_stays_however_it_was_laid_out(name: str) -> None:
    for seed in range(4):
        text = strewn(SHIPPED[name], seed)
        made = formatted(text, name)
        assert formatted(made, name) == made
        assert ir_of(made) == ir_of(text) == ir_of(SHIPPED[name])


@pytest.mark.parametrize("seed", range(30))
def test_the_meaning_of_a_generated_program_stays(seed: int) -> None:
    text = program(random.Random(seed))
    for given in (text, strewn(text, seed)):
        made = formatted(given, "x")
        assert formatted(made, "x") == made
        assert ir_of(made) == ir_of(text)


def test_comments_stay_between_the_tokens_where_they_were() -> None:
    for seed in range(20):
        text = strewn(SHIPPED["graddrop"], seed)
        words = [re.findall(r"own \d+|in \d+|// \d+|two|\w+", t) for t in (text, formatted(text, "x"))]
        assert words[0] == words[1]


def test_a_program_that_is_wrong_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bad.pse"
    path.write_text("void BadEncode(float* g, uint8* c) { float a = 1 }")
    done = command("fmt", path)
    assert done.returncode == 1
    assert "missing ';'" in done.stderr
    assert path.read_text() == "void BadEncode(float* g, uint8* c) { float a = 1 }"


def test_fmt_writes_and_checks(tmp_path: Path) -> None:
    path = tmp_path / "ugly.pse"
    path.write_text(UGLY)
    done = command("fmt", "--check", path)
    assert (done.returncode, path.read_text()) == (1, UGLY)
    assert "would change" in done.stdout
    assert "formatted" in right("fmt", path)
    assert path.read_text() == PRETTY
    assert right("fmt", "--check", path) == ""
    assert CliRunner().invoke(app, ["fmt", "-"], input=UGLY).stdout == PRETTY


def test_a_program_that_nests_deeply_is_laid_out_too() -> None:
    text = (
        "void DeepEncode(float* g, uint8* c) { float x = "
        + "(" * 3000
        + "1"
        + ")" * 3000
        + "; c = concat(x); }"
    )
    assert "(((1)))" in formatted(text, "deep")
