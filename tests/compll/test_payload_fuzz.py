"""Damaged and random payloads: each is decoded to n floats or refused, and no byte outside is touched."""

from __future__ import annotations

import functools
import re

import payload_driver
import pytest
from compll_cases import light, once

import compll
from compll.tools import damage

ALGORITHMS = tuple(compll.algorithms())
INPUTS = {"interp": 2_000, "cpp": 10_000, "numba": 1_000, "cudasim": 300}
PAIRS = [(name, backend) for name in ALGORITHMS for backend in INPUTS]
MANY = 10_000


@functools.cache
def codec(name: str, backend: str) -> compll.Codec:
    return compll.compile(name, backend)


@pytest.mark.parametrize(
    ("name", "backend"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if light(*pair) else []) for pair in PAIRS],
)
def test_any_payload_is_decoded_or_refused_and_stays_in_its_buffers(name: str, backend: str) -> None:
    try_payloads(name, backend, INPUTS[backend])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_many_payloads_are_decoded_or_refused_and_stay_in_their_buffers(name: str, backend: str) -> None:
    try_payloads(name, backend, MANY)


def try_payloads(name: str, backend: str, inputs: int) -> None:
    found = damage.fuzz(codec(name, backend), codec(name, "cpp"), codec(name, "interp"), inputs)
    assert not found.wrong, found.wrong
    assert found.decoded + found.refused == inputs
    assert found.counts["valid"][1] == 0
    assert found.counts["extended"][0] == 0
    assert found.counts["truncated"][1] > 0


# --- the C ABI, under the sanitizers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "element"),
    [
        *(pytest.param(*p.values, "float", marks=p.marks) for p in once(ALGORITHMS)),
        *(("onebit", "half"), ("graddrop", "bfloat16")),
    ],
)
def test_the_c_abi_touches_no_byte_outside_of_its_buffers(name: str, element: str) -> None:
    result = payload_driver.run(*payload_driver.build(name, "-O0", element=element), 10_000)
    assert not result.wrong, result.wrong
    assert result.inputs >= 10_000
    assert result.counts["valid"][1] == 0
    assert result.counts["extended"][0] == 0
    assert result.counts["truncated"][1] > 0


def one_beyond(source: str) -> str:
    """Return a library whose decoders write one element beyond the end."""
    begin = "k.gradient = static_cast<Gradient*>(item.gradient)"
    assert begin in source
    head, decode, rest = source.partition("\nint32_t decode(")
    return head + decode + rest.replace(begin, begin + " + 1")


def test_the_driver_sees_a_decoder_that_writes_beyond_its_output() -> None:
    result = payload_driver.run(*payload_driver.build("onebit", "-O0", one_beyond), 1000)
    assert "AddressSanitizer: heap-buffer-overflow" in result.wrong
    assert re.search(r"in group \d+, input 0$", result.wrong.strip())


def unchecked(source: str) -> str:
    """Return a library that does not look at the length of a payload."""
    changed = re.sub(r"item\.(source_)?length != \w+\.end", "false", source)
    assert changed != source
    return changed


def test_the_driver_sees_a_decoder_that_reads_a_payload_which_is_too_short() -> None:
    result = payload_driver.run(*payload_driver.build("onebit", "-O0", unchecked), 1000)
    assert "AddressSanitizer: heap-buffer-overflow" in result.wrong
    assert "READ of size" in result.wrong
