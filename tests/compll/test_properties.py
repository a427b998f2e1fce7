"""What a codec says of itself, and its fingerprint: what two ranks must agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compll_cases import compiled, gradient, same_bits, write
from test_language import IDENTITY, LEVELS

import compll
from compll import codec as api

TERNGRAD = compll.algorithms()["terngrad"]


def test_the_shipped_codecs_say_what_they_are() -> None:
    onebit, terngrad = (compll.compile(name, "interp").info for name in ("onebit", "terngrad"))
    flags = ("exact_size", "summable", "unbiased", "stateful", "random", "keyed", "feedback", "hop", "sparse")
    assert [f for f in flags if getattr(onebit, f)] == ["exact_size", "stateful", "feedback", "hop"]
    assert [f for f in flags if getattr(terngrad, f)] == ["exact_size", "unbiased", "random", "hop"]
    assert onebit.nonfinite == terngrad.nonfinite == "propagates"
    assert terngrad.params["bitwidth"].range == (1, 8)
    for info in (onebit, terngrad):
        assert all(info.why[f] for f in ("summable", "unbiased", "feedback", "hop") if not getattr(info, f))
        assert len(info.fingerprint) == 64
        with pytest.raises(AttributeError):
            info.name = "other"  # type: ignore[misc]


def stated(attributes: str = "", formals: str = "", body: str = "") -> api.Codec:
    text = f"""{attributes}
void StatedEncode(float* gradient, uint8* compressed{formals}) {{
    {body or "compressed = concat(gradient);"}
}}
void StatedDecode(uint8* compressed, float* gradient) {{ float* v; extract(compressed, v); gradient = v; }}
"""
    return compiled(text, "interp")


@pytest.mark.parametrize(
    ("codec", "hop", "feedback"),
    [
        (stated(), True, False),
        (stated("[[no_hop]]"), False, False),
        (
            stated(formals=", state float* m", body="compressed = concat(gradient); m = gradient;"),
            False,
            False,
        ),
        (
            stated(
                formals=", state float* m",
                body="float* y = m + gradient; compressed = concat(y); m = y - decode(compressed);",
            ),
            True,
            True,
        ),
        (
            stated(
                formals=", state float* m, state float* u",
                body="float* y = m + gradient; compressed = concat(y); u = y; m = y - decode(compressed);",
            ),
            False,
            True,
        ),
        (
            stated(
                formals=", state float* m",
                body="float* y = m + gradient; compressed = concat(y); m = 0.5 * y - decode(compressed);",
            ),
            False,
            False,
        ),
    ],
)
def test_feedback_and_hop_are_recognised(codec: api.Codec, hop: bool, feedback: bool) -> None:
    assert codec.info.hop == hop
    assert codec.info.feedback == feedback
    if not hop:
        assert codec.info.why["hop"]
        n = 4
        with pytest.raises(api.ParameterError, match="has no hop: "):
            codec.hop(np.zeros(16, np.uint8), np.zeros(n, np.float32), state=codec.new_state(n))


def test_declarations_are_taken_over() -> None:
    assert stated("[[unbiased]] [[drops]]").info.unbiased
    assert stated("[[drops]]").info.nonfinite == "drops"


def fingerprint(text: str, name: str = "", **options: Any) -> str:
    return api.compile(write(text, name), options.pop("backend", "interp"), **options).info.fingerprint


def test_the_fingerprint_changes_with_what_ranks_must_agree_on() -> None:
    text = TERNGRAD.read_text("utf-8")
    base = fingerprint(text)
    different = {
        fingerprint(text, bitwidth=3),
        fingerprint(text, error_feedback=True),
        fingerprint(text.replace("1 << bitwidth", "2 << bitwidth")),
        fingerprint(
            text.replace("concat(bitwidth, low, gap", "concat(low, bitwidth, gap").replace(
                "compressed, bitwidth, low", "compressed, low, bitwidth"
            )
        ),
        fingerprint(text.replace("level * gap + low;", "low + level * gap;")),
        fingerprint(text.replace("smaller);", "0, smaller);")),
        fingerprint(text.replace("TernGrad", "Other")),
    }
    assert base not in different
    assert len(different) == 7


def test_the_fingerprint_does_not_change_with_what_does_not_matter() -> None:
    text = TERNGRAD.read_text("utf-8")
    base = fingerprint(text)
    code = "\n".join(line.partition("//")[0] for line in text.splitlines())
    assert fingerprint(code) == base
    assert fingerprint(text, "renamed_file") == base
    assert fingerprint("\n\n" + text.replace("    ", "\t")) == base
    assert fingerprint(text, backend="cpp") == base
    assert fingerprint(text, bitwidth=2) == base
    ratio = "void REncode(float* g, uint8* c, float r = 0.5) { float* v = g * r; c = concat(v); }"
    ratio += "void RDecode(uint8* c, float* g) { float* v; extract(c, v); g = v; }"
    assert fingerprint(ratio) == fingerprint(ratio, r=0.25)


def test_names_of_the_program_do_not_hide_in_the_fingerprint() -> None:
    """A scalar called n is not gradient.size."""
    text = "void NEncode(float* g, uint8* c, int n = 3) {{ float* v = g * {}; c = concat(v); }}"
    text += "void NDecode(uint8* c, float* g) {{ float* v; extract(c, v); g = v; }}"
    assert fingerprint(text.format("n")) != fingerprint(text.format("g.size"))


PLAIN = """
void CutEncode(float* gradient, uint8* compressed, float step = 0.25) {
    int8* q = round(gradient / step);
    compressed = concat(q);
}
void CutDecode(uint8* compressed, float* gradient, float step = 0.25) {
    int8* q; extract(compressed, q); gradient = q * step;
}
"""
BY_HAND = PLAIN.replace(
    "float step = 0.25) {\n    int8* q = round(gradient",
    "float step = 0.25, state float* residual) {\n    float* x = gradient + residual;\n    int8* q = round(x",
).replace("concat(q);", "concat(q);\n    residual = x - decode(compressed);")


@pytest.mark.parametrize("backend", ["interp", "cpp"])
def test_error_feedback_equals_the_same_written_by_hand(backend: str) -> None:
    added, by_hand = compiled(PLAIN, backend, True), compiled(BY_HAND, backend)
    assert added.info.feedback
    assert added.info.stateful
    assert added.info.hop
    states = [c.new_state(1500) for c in (added, by_hand)]
    for step, label in enumerate(("normal", "normal", "mixed", "huge", "normal")):
        g = gradient(label, 1500, seed=step)
        a, b = (c.encode(g, state=s) for c, s in zip((added, by_hand), states, strict=True))
        assert same_bits(a, b)
        assert same_bits(states[0]["residual"], states[1]["residual"])
        assert np.isfinite(states[0]["residual"]).all()


def test_what_a_payload_loses_is_kept() -> None:
    codec = compiled(PLAIN, "cpp", True)
    state, g = codec.new_state(1000), gradient("normal", 1000)
    payload = codec.encode(g, state=state)
    assert same_bits(state["residual"], g - codec.decode(payload, 1000))


def test_feedback_that_is_there_already_is_refused_by_name() -> None:
    for text, words in (
        (compll.algorithms()["onebit"].read_text(), "residual"),
        (BY_HAND.replace("residual", "memory"), "memory"),
        (
            PLAIN.replace(
                "float step = 0.25) {\n    int8* q = r",
                "float step = 0.25, state float* residual) {\n    int8* q = r",
            ),
            "residual",
        ),
    ):
        with pytest.raises(api.ParameterError, match=words):
            api.compile(write(text), "interp", error_feedback=True)


def test_error_feedback_around_a_random_codec_and_other_states() -> None:
    for backend in ("interp", "cpp"):
        codec = compiled(LEVELS, backend, True, bitwidth=2)
        state, g = codec.new_state(700), gradient("normal", 700)
        payload = codec.encode(g, seed=1, state=state)
        assert same_bits(payload, compiled(LEVELS, backend, bitwidth=2).encode(g, seed=1))
        assert same_bits(state["residual"], g - codec.decode(payload, 700))
    momentum = PLAIN.replace(
        "float step = 0.25) {\n    int8* q = round(gradient",
        "float step = 0.25, state float* m) {\n    m = m * 0.5 + gradient;\n    int8* q = round(m",
        1,
    )
    info = api.compile(write(momentum), "interp", error_feedback=True).info
    assert info.feedback
    assert not info.hop
    assert "m" in info.why["hop"]


def test_the_fingerprint_of_the_identity_is_stable() -> None:
    """Two processes, two days: nothing but the program goes in."""
    assert fingerprint(IDENTITY) == fingerprint(IDENTITY, "again")
    assert Path(compll.algorithms()["onebit"]).is_file()
