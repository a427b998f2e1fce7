"""What holds for every shipped algorithm: its length, odd inputs, what it says of itself, every backend."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compll_cases import BACKENDS, LABELS, RELATIVES, cross, gradient

import compll
from compll import catalogue
from compll.tools import compare

ROOT = Path(__file__).resolve().parents[2]
NAMES = tuple(compll.algorithms())
PUBLISHED = {
    "onebit": 30,
    "tbq": 31,
    "terngrad": 30,
    "dgc": 44,
    "graddrop": 50,
}  # lines, by HiPress (SOSP 2021)
f32 = np.float32

OVERFLOWING = {
    *("onebit", "qsgd", "terngrad"),  # by a sum, a sum of squares, a range: docs/wire-format.md
    *("efsignsgd", "blocksign"),  # by a sum
    *("fp16", "bf16", "hadamard4"),  # beyond the greatest of the format; by the rotation back
}


@functools.cache
def codec(name: str, backend: str = "interp") -> compll.Codec:
    return compll.compile(name, backend)


def start(made: compll.Codec, n: int) -> dict[str, Any]:
    """Return a state that is not zero."""
    return {k: np.linspace(-0.5, 0.5, n, dtype=f32) for k in made.new_state(n)}


def sent(made: compll.Codec, g: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return a gradient as it arrives, from a state of zeros."""
    payload = made.encode(g, seed=seed, state=made.new_state(len(g)) or None)
    return np.asarray(made.decode(payload, len(g), shared_seed=seed))


def test_the_issue_s_algorithms_are_there() -> None:
    sparse = {"adacomp", "dgc", "graddrop", "randomk", "sidco", "threshold", "topk"}
    bits = {"blocksign", "efsignsgd", "onebit", "signsgd", "tbq", "terngrad"}
    levels = {"dithering", "dynamic8", "hadamard4", "int4", "int8", "int8minmax", "natural", "qsgd"}
    floats = {"bf16", "fp16", "fp8", "fp8e5m2", "identity", "mxfp4", "mxfp8", "nvfp4"}
    assert set(NAMES) == sparse | bits | levels | floats


def test_what_make_test_leaves_out_stands_beside_a_shipped_algorithm_that_it_has() -> None:
    assert {*RELATIVES, *RELATIVES.values()} <= set(NAMES)
    assert not set(RELATIVES) & set(RELATIVES.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_program_has_at_most_the_published_lines(name: str) -> None:
    lines = catalogue.code_lines(compll.algorithms()[name].read_text("utf-8"))
    assert 0 < lines <= PUBLISHED.get(name, 30)


def test_lines_of_code_are_those_that_are_neither_blank_nor_comment() -> None:
    assert catalogue.code_lines("// a\n\nint b; // c\n   \n/* d\ne */\n/* f */ int g;\n  }\n") == 3


@pytest.mark.parametrize("name", NAMES)
def test_finite_gradients_of_every_kind_and_size_give_payloads_within_the_bound(name: str) -> None:
    """And what is decoded is finite too, where it lies within the range of float."""
    made = codec(name)
    for n in (0, 1, 2, 7, 127, 1000, 1025):
        for label in LABELS:
            g = gradient(label, n)
            state = start(made, n)
            payload = made.encode(g, seed=n, state=state or None)
            assert len(payload) == made.max_bytes(n) or not made.info.exact_size
            assert len(payload) <= made.max_bytes(n)
            out = made.decode(payload, n, shared_seed=n)
            assert np.isfinite(out).all() or label == "mixed" or (label == "huge" and name in OVERFLOWING)
            assert all(np.isfinite(s).all() for s in state.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_of_zeros_arrives_as_zeros(name: str) -> None:
    for n in (1, 300, 1025):
        assert (sent(codec(name), np.zeros(n, f32)) == 0).all()
        assert (sent(codec(name), np.full(n, -0.0, f32)) == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.6, -1e15])
def test_a_constant_gradient_keeps_its_direction(name: str, value: float) -> None:
    for n in (1, 7, 1000):
        out = sent(codec(name), np.full(n, value, f32))
        assert (out * f32(np.sign(value)) >= 0).all()
        assert out.any()


@pytest.mark.parametrize("name", NAMES)
def test_what_it_says_of_nan_and_infinity_is_true(name: str) -> None:
    """Where it propagates, one such element anywhere is seen; where it drops, there is one that is not."""
    n, made, seen = 700, codec(name), []
    for value in (np.nan, np.inf, -np.inf):
        for at in range(0, n, 37):
            g = gradient("normal", n)
            g[at] = value
            seen.append(not np.isfinite(sent(made, g)).all())
    assert all(seen) == (made.info.nonfinite == "propagates")


@pytest.mark.parametrize("name", NAMES)
def test_exactly_those_that_draw_numbers_depend_on_their_seeds(name: str) -> None:
    made, g = codec(name), gradient("normal", 40_000)
    first, again, other = (
        made.encode(g, seed=s, state=made.new_state(len(g)) or None).tobytes() for s in (1, 1, 2)
    )
    assert first == again
    assert (first != other) == (made.info.random or made.info.keyed)


# --- every backend -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), cross("cpp", "numba", "cudasim"))
def test_every_backend_writes_the_interpreter_s_bits(name: str, backend: str) -> None:
    cases = [compare.case(codec(name), *what) for what in compare.grid((0, 1, 31, 1023, 1025, 4096 * 3 + 5))]
    found = compare.compare(codec(name, backend), cases)
    assert not found.differences
    assert found.results > 5 * len(cases)


# --- the table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda e: e.name)
def test_the_table_says_what_is_true(entry: catalogue.Entry) -> None:
    made = codec(entry.name)
    assert entry.summary.endswith(".")
    assert entry.when.endswith(".")
    assert any(year in entry.source for year in map(str, range(2014, 2026)))
    assert entry.bytes == made.max_bytes(2**20)
    assert entry.ratio == round(2**22 / entry.bytes, 1)
    assert entry.exact_size == made.info.exact_size
    assert set(entry.properties) == {p for p in catalogue.PROPERTIES if getattr(made.info, p)}
    assert set(entry.backends) == {*BACKENDS, "cuda"}
    assert all(made.info.params[k].value == f32(v) for k, v in entry.parameters.items())


def test_the_page_of_algorithms_is_fresh() -> None:
    page = (ROOT / "docs" / "algorithms.md").read_text("utf-8")
    assert page == catalogue.markdown(), "run `compll algorithms --markdown > docs/algorithms.md`"
    drawn = sorted((ROOT / "docs" / catalogue.PICTURES).iterdir())
    assert [p.name for p in drawn] == [f"{name}.png" for name in NAMES], "run `compll algorithms --pictures`"
    assert all(1_000 < p.stat().st_size < 40_000 for p in drawn)
