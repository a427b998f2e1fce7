"""Mutated programs and random payloads: an error of ours or a defined result, never anything else."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from compll_cases import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_language import FREE, KEYWORDS, LEVELS

import compll
from compll import driver
from compll.emit import cpp

SEEDS = [LEVELS, FREE, KEYWORDS, *(p.read_text("utf-8") for p in compll.algorithms().values())]
WORDS = """
; { } ( ) [ ] [& [[ ]] , . = == < > << * / % & | ^ ! ~ ? : -> // /* */ " ' \\ \0 é
0 1 255 1e40 .5 0x 9999999999999999999999 nan inf true
if else return for float int uint8 uint<3> uint<0> bool half void lambda_func state shared
reduce map range random<float> concat extract decode bitcast<uint32> cast<int8>
gradient compressed size x.size
""".split()  # noqa: SIM905 - a table of words


def survives(text: str) -> None:
    path = write(text, "fuzz")
    start = time.monotonic()
    try:
        for checked in driver.check_files([path], {"bitwidth": 3} if "bitwidth" in text else {}):
            cpp.source(driver.unit_of(checked))
            driver.program_of(checked)
    except (compll.CompileError, compll.ParameterError, compll.BackendError) as e:
        assert str(e)
    assert time.monotonic() - start < 20, "this takes for ever"


@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SEEDS), st.integers(0, 2**32), st.integers(1, 6))
def test_mutated_programs_are_answered_with_errors_of_ours(text: str, seed: int, changes: int) -> None:
    r = random.Random(seed)
    for _ in range(changes):
        at, length = r.randrange(len(text) + 1), r.choice((0, 0, 1, 3, 20))
        match r.randrange(4):
            case 0:
                text = text[:at] + text[at + max(length, 1) :]
            case 1:
                text = text[:at] + f" {r.choice(WORDS)} " + text[at + length :]
            case 2:
                start = r.randrange(len(text) + 1)
                text = text[:at] + text[start : start + r.randrange(40)] + text[at:]
            case 3:
                names = sorted(set(text.replace("(", " ").replace(";", " ").split()))
                a, b = r.choice(names), r.choice(names)
                text = text.replace(a, b, 1)
        text = text or ";"
    survives(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_strings_of_words_are_answered_with_errors_of_ours(words: list[str]) -> None:
    survives("void XEncode(float* gradient, uint8* compressed) { " + " ".join(words) + " }")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_answered_with_errors_of_ours(text: str) -> None:
    survives(text.encode("utf-8", "replace").decode("utf-8"))


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
        "".join(f"float* a{k} = gradient + {k};" for k in range(600)) + "float s = reduce(a599, add);",
        "float a = 1;" * 300,
    ],
    ids=lambda b: b[:20].strip(),
)
def test_programs_of_extreme_shape_are_answered(body: str) -> None:
    survives(
        "void XEncode(float* gradient, uint8* compressed) { " + body + " compressed = concat(gradient); }"
        "void XDecode(uint8* compressed, float* gradient) { float* v; extract(compressed, v); gradient = v; }"
    )


@pytest.mark.parametrize(("name", "params"), [("onebit", {}), ("terngrad", {"bitwidth": 3})])
def test_random_payloads_are_refused_or_decoded_and_stay_in_their_buffers(
    name: str, params: dict[str, int]
) -> None:
    codec = compll.compile(name, "cpp", **params)
    rng = np.random.default_rng(0)
    room = np.full(4096, 7, np.float32)
    for _ in range(10_000):
        n = int(rng.integers(0, 300))
        right = codec.max_bytes(n)
        size = right if rng.random() < 0.8 else int(rng.integers(0, right + 20))
        payload = rng.integers(0, 256, size, dtype=np.uint8)
        if size and name == "terngrad" and rng.random() < 0.8:
            payload[0] = 3
        out = room[64 : 64 + n]
        try:
            codec.decode(payload, n, out=out)
        except compll.PayloadError:
            assert (out == 7).all()
            assert size != right or payload[0] != 3
        assert (room[:64] == 7).all()
        assert (room[64 + n :] == 7).all()
        out[:] = 7


def test_random_payloads_decode_alike_on_both_backends() -> None:
    rng = np.random.default_rng(1)
    for name in ("onebit", "terngrad"):
        a, b = compll.compile(name, "interp"), compll.compile(name, "cpp")
        for _ in range(300):
            n = int(rng.integers(0, 300))
            payload = rng.integers(0, 256, a.max_bytes(n), dtype=np.uint8)
            if name == "terngrad":
                payload[:1] = 2
            assert a.decode(payload, n).tobytes() == b.decode(payload, n).tobytes()
