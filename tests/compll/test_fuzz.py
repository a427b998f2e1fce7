"""Texts of every kind: the compiler answers with a codec or with errors of ours, never anything else."""

from __future__ import annotations

import random
import time

import fuzz_inputs
import fuzz_minimise
import fuzz_oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compll import passes
from compll.errors import CompileError, Diagnostic, Span
from compll.parse import parse

INPUTS = {  # a second or five each; `benchmarks/fuzz_language.py` has made a million
    "sentence of the grammar": 300,
    "sentences in a codec": 250,
    "mutated by characters": 900,
    "mutated by tokens": 800,
    "mutated by lines": 900,
    "plausible program": 100,
    "plausible program, mutated": 500,
}


def is_answered(text: str, *, run: bool = False) -> None:
    outcome = fuzz_oracle.examine(text, run=run)
    assert not isinstance(outcome, fuzz_oracle.Finding), f"{text}\n{outcome.detail}"


def made(kind: str, seed: str, count: int) -> None:
    maker = fuzz_inputs.MAKERS[kind][1]
    for number in range(count):
        is_answered(maker(random.Random(f"{seed} {kind} {number}")), run=number % 4 == 0)


def test_every_kind_of_input_is_tried() -> None:
    assert INPUTS.keys() == fuzz_inputs.MAKERS.keys()


@pytest.mark.parametrize("kind", INPUTS)
def test_texts_are_answered_with_codecs_or_errors_of_ours(kind: str) -> None:
    made(kind, "quick", INPUTS[kind])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", INPUTS)
def test_many_texts_are_answered_with_codecs_or_errors_of_ours(kind: str) -> None:
    made(kind, "long", 10 * INPUTS[kind])


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_answered_with_errors_of_ours(text: str) -> None:
    is_answered(text)


TOWER = "lambda_func f = [&](float x) -> float { return x; }; " + "".join(
    f"lambda_func f{k} = [&](float x) -> float {{ return f{k - 1 or ''}(x) + f{k - 1 or ''}(-x); }}; "
    for k in range(1, 40)
)


@pytest.mark.parametrize(
    "body",
    [
        "float a = " + "(" * 5000 + "1" + ")" * 5000 + ";",
        "float a = " + "1 + " * 5000 + "1;",
        "float a = " + "abs(" * 2000 + "1" + ")" * 2000 + ";",
        "float* a = " + "gradient + " * 95 + "gradient;",
        "if (1) " * 3000 + "float a = 1;",
        "if (true) {} " + "else if (true) {} " * 2000,
        "float a = " + "9" * 6000 + ";",
        "float a = " + "9" * 6000 + ".0;",
        TOWER + "float a = f39(1);",
        TOWER + "float a = f39(reduce(gradient, add));",
        "".join(f"float* a{k} = gradient + {k};" for k in range(600)) + "float s = reduce(a599, add);",
        "float a = 1;" * 300,
    ],
    ids=lambda b: b[:20].strip(),
)
def test_programs_of_extreme_shape_are_answered(body: str) -> None:
    is_answered(
        "void XEncode(float* gradient, uint8* compressed) { " + body + " compressed = concat(gradient); }"
        "void XDecode(uint8* compressed, float* gradient) { float* v; extract(compressed, v); gradient = v; }"
    )


# --- the fuzzer itself -------------------------------------------------------------------------------


def test_every_sentence_of_the_grammar_is_parsed() -> None:
    for number in range(300):
        parse(fuzz_inputs.any_sentence(random.Random(number)), "sentence.pse")


def test_most_plausible_programs_are_right() -> None:
    programs = (fuzz_inputs.program(random.Random(number)) for number in range(40))
    outcomes = [fuzz_oracle.examine(text, backends=()) for text in programs]
    assert outcomes.count("right") > 30, outcomes


def test_an_input_follows_from_its_seed_and_number() -> None:
    texts = [fuzz_inputs.make(seed, number) for seed in (1, 2) for number in range(20)]
    assert texts == [fuzz_inputs.make(seed, number) for seed in (1, 2) for number in range(20)]
    assert len({t.text for t in texts}) > 35


RIGHT = fuzz_inputs.corpus()[0][0]


def test_an_exception_of_another_kind_is_found_and_made_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(f: object) -> object:
        raise KeyError(f)

    monkeypatch.setattr(passes, "PASSES", (broken,))

    def is_found(text: str) -> bool:
        outcome = fuzz_oracle.examine(text)
        return (
            isinstance(outcome, fuzz_oracle.Finding)
            and outcome.signature == "KeyError at test_fuzz.py:broken"
        )

    assert is_found(RIGHT)
    short = fuzz_minimise.minimise(RIGHT, is_found)
    assert is_found(short)
    assert len(short) < len(RIGHT) / 2


def test_a_compiler_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(text: str, file: str) -> object:
        while True:
            text += file

    monkeypatch.setattr(fuzz_oracle, "parse", endless)
    monkeypatch.setattr(fuzz_oracle, "SECONDS", 0.2)
    begin = time.monotonic()
    outcome = fuzz_oracle.examine(RIGHT)
    assert isinstance(outcome, fuzz_oracle.Finding)
    assert outcome.signature == "TooLong at time", time.monotonic() - begin


@pytest.mark.parametrize(
    ("line", "column", "message"), [(9, 1, "m"), (0, 1, "m"), (1, 80, "m"), (1, 0, "m"), (1, 1, " ")]
)
def test_a_diagnostic_without_place_or_message_is_found(
    monkeypatch: pytest.MonkeyPatch, line: int, column: int, message: str
) -> None:
    def wrong(text: str, file: str) -> object:
        span = Span(file, line, column, line, column + 1)
        raise CompileError([Diagnostic(message, span)], {file: text})

    monkeypatch.setattr(fuzz_oracle, "parse", wrong)
    outcome = fuzz_oracle.examine("void X() {}")
    assert isinstance(outcome, fuzz_oracle.Finding)
    assert outcome.signature == "AssertionError at fuzz_oracle.py:is_sane"
