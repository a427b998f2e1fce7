"""`compll run` sees what is wrong with a codec, and finds nothing wrong with one that is right."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compll_cases import compiled, write
from test_compll_cli import compll as command
from test_compll_cli import right

import compll
from compll import driver
from compll.tools import child, compare, damage, measure, trial

BIASED = """
{declared}
void LeanEncode(float* gradient, uint8* compressed) {{
    float scale = max(reduce(abs(gradient), 0, greater) / 127, 1e-45);
    int8* level = stochastic_round(gradient / scale + {off});
    compressed = concat(scale, level);
}}
void LeanDecode(uint8* compressed, float* gradient) {{
    float scale; int8* level;
    extract(compressed, scale, level);
    gradient = level * scale;
}}
"""
SUMS = """
void SumsEncode(float* gradient, uint8* compressed) { half* h = gradient; compressed = concat(h); }
void SumsDecode(uint8* compressed, float* gradient) { half* h; extract(compressed, h); gradient = h; }
"""


def tried(source: str | Path, **options: Any) -> trial.Trial:
    given = {"backends": ("interp",), "n": 1500, "payloads": 0} | options
    *_, found = trial.run(source, trial.Options(**given))
    assert isinstance(found, trial.Trial)
    return found


def holds(found: trial.Trial, claim: str) -> bool | None:
    (passed,) = {c.passed for c in found.checks if claim in c.claim}
    return passed


@pytest.mark.parametrize("name", ["onebit", "terngrad", "randomk", "dgc"])
def test_shipped_codecs_pass(name: str) -> None:
    found = tried(name, backends=("cpp",))
    assert not found.failures
    assert found.comparisons[0].results > 5 * found.comparisons[0].gradients > 200
    assert {r.operation for r in found.times} >= {"encode", "decode", "decode_add"}
    assert [f.gradient for f in found.fidelity] == ["normal", "heavy"]


def test_what_a_codec_claims_is_checked_and_what_it_does_not_claim_is_not() -> None:
    found = {name: tried(name, backends=("cpp",)) for name in ("onebit", "terngrad", "randomk")}
    assert {name: holds(t, "unbiased") for name, t in found.items()} == {
        "onebit": None,
        "terngrad": True,
        "randomk": None,  # it is, but for a factor
    }
    assert {name: holds(t, "feedback") for name, t in found.items()} == {
        "onebit": True,
        "terngrad": None,
        "randomk": None,
    }
    assert {name: holds(t, "sum of payloads") for name, t in found.items()} == {
        "onebit": None,
        "terngrad": None,
        "randomk": True,
    }


@pytest.mark.parametrize("off", ["0.02", "-0.02", "0.02 * gradient"])
def test_a_bias_of_a_fiftieth_of_a_step_is_seen(off: str) -> None:
    codec = compiled(BIASED.format(declared="[[unbiased]]", off=off))
    assert measure.unbiased(codec).passed is False
    assert measure.unbiased(compiled(BIASED.format(declared="", off=off))).passed is None


def test_a_bias_in_any_direction_is_seen() -> None:
    """One that is orthogonal to the gradient and to ones, nearly: what is left to the third mean."""
    off = "(popcount(bitcast<uint32>(gradient)) % 2 == 0 ? 0.3 : -0.3)"
    check = measure.unbiased(compiled(BIASED.format(declared="[[unbiased]]", off=off)))
    assert check.passed is False
    assert "squared" in check.found


def test_rounding_at_random_passes_with_any_seed_of_the_draws() -> None:
    codec = compiled(BIASED.format(declared="[[unbiased]]", off="0"))
    assert all(measure.unbiased(codec, draws=100, n=n).passed for n in range(1000, 1020))


def test_a_declaration_about_nan_that_is_wrong_is_seen() -> None:
    rounds = BIASED.replace("{off}", "0").replace("{{", "{").replace("}}", "}")
    drops = "void DropEncode(float* g, uint8* c) { int8* q = g; c = concat(q); }"
    drops += "void DropDecode(uint8* c, float* g) { int8* q; extract(c, q); g = q; }"
    assert holds(tried(write(rounds.replace("{declared}", "[[drops]]"))), "are dropped") is False
    assert holds(tried(write(drops)), "propagate") is False
    assert holds(tried(write("[[drops]] " + drops)), "are dropped") is True


def test_payloads_of_halves_can_be_summed() -> None:
    assert holds(tried(write(SUMS)), "sum of payloads") is True


def test_a_program_that_reads_outside_of_its_gradient_fails_and_is_told_where() -> None:
    text = "void HeadEncode(float* g, uint8* c) { float h = g[3]; c = concat(h); }"
    text += "void HeadDecode(uint8* c, float* g) { float h; extract(c, h);"
    text += " g = map(range(g.size), [&](int i) -> float { return h; }); }"
    found = tried(write(text))
    assert holds(found, "every gradient") is False
    assert "of 1 elements: encode raises: IndexError" in " ".join(found.failures)


def test_results_that_differ_are_told_one_by_one() -> None:
    meant = compiled(BIASED.format(declared="", off="0"), "interp")
    other = compiled(BIASED.format(declared="", off="0.4"), "interp")
    found = compare.compare(other, [compare.case(meant, "normal", n) for n in (0, 50)])
    assert {d.result for d in found.differences} == {"payload", "hop"}  # both decode what is meant
    assert {d.n for d in found.differences} == {50}
    same = compare.compare(meant, [compare.case(meant, "mixed", 50)])
    assert not same.differences


class Lenient:
    """A codec that cuts or fills a payload which has the wrong length, and decodes that."""

    backend = "lenient"

    def __init__(self, codec: compll.Codec) -> None:
        self.codec, self.info = codec, codec.info

    def batch(self, op: Any, items: Sequence[compll.Item], threads: int) -> Any:
        n = len(items[0].out)
        right = np.zeros(self.codec.max_bytes(n), np.uint8)
        given = items[0].payload[: len(right)]
        right[: len(given)] = given
        item = compll.Item(payload=right, out=items[0].out, scale=items[0].scale, shared_seed=7)
        return self.codec.batch(op, [item], threads)


def test_a_decoder_that_takes_payloads_of_any_length_is_seen() -> None:
    meant = compiled("[[no_hop]]" + SUMS, "interp")
    assert not damage.fuzz(meant, meant, meant, 90).wrong
    found = damage.fuzz(Lenient(meant), meant, meant, 90)  # type: ignore[arg-type]
    assert "was decoded" in found.wrong or "not the interpreter's" in found.wrong
    assert "kind '" in found.wrong


def test_fuzzing_in_another_process_answers_as_here_and_survives_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = driver.find("terngrad")
    there = child.fuzz_apart(files, "interp", 90, params={"bitwidth": 3})
    codec = compll.compile("terngrad", "interp", bitwidth=3)
    assert there == damage.fuzz(codec, codec, codec, 90)
    ends = tmp_path / "python"
    ends.write_text("#!/bin/sh\nkill -SEGV $$\n")
    ends.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(ends))
    assert "SIGSEGV" in child.fuzz_apart(files, "interp", 90, params={}).wrong


def test_run_reports_and_exits_with_1_where_something_fails(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    args = ("--backend", "interp", "-n", "1000", "--payloads", "90")
    told = json.loads(right("run", "onebit", *args, "--plot", picture, "--json"))
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert told["failures"] == []
    assert told["fuzzes"][0]["counts"]["extended"][0] == 0
    assert {c["passed"] for c in told["checks"]} == {True, None}
    done = command("run", write(BIASED.format(declared="[[unbiased]]", off="0.1")), *args)
    assert done.returncode == 1
    assert "FAILED decoding is unbiased" in done.stdout
    assert [line.split()[:4] for line in done.stdout.splitlines() if "FAILS" in line] == [
        ["decoding", "is", "unbiased", "FAILS"]
    ]


def test_a_backend_that_is_not_here_is_told_and_fails_only_if_it_alone_is_asked_for() -> None:
    missing = {"COMPLL_CXX": "nonexistent-compiler"}
    args = ("run", "terngrad", "-n", "10", "--payloads", "0", "--backend")
    assert "not here" in right(*args, "cpp,interp", **missing)
    done = command(*args, "cpp", **missing)
    assert done.returncode == 1
    assert "COMPLL_CXX" in done.stderr
    assert os.environ.get("COMPLL_CXX") != "nonexistent-compiler"
