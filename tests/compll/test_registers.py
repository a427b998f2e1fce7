"""The C++ of a processor with registers of 32 or 16 bytes writes the same bits as with those of 64."""

from __future__ import annotations

import functools

import pytest
from compll_cases import LEVELS, built_for

import compll
from compll import build
from compll.tools import compare

NAMES = ("onebit", "terngrad", "int8", "int4", "dynamic8", "fp8", "threshold", "hadamard4")
SIZES = (0, 1, 17, 1023, 1025, 4096 + 77)  # about the ends of registers, tiles and blocks


@functools.cache
def meant(name: str) -> list[compare.Case]:
    """Return gradients with what the interpreter writes for them."""
    codec = compll.compile(name, "interp")
    return [compare.case(codec, label, n) for n in SIZES for label in ("normal", "mixed")]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_codecs_are_bit_equal_in_narrower_registers(name: str, level: str) -> None:
    assert not compare.compare(built_for(level, name), meant(name), [1, 2]).differences


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(set(compll.algorithms()) - set(NAMES)))
def test_every_codec_is_bit_equal_in_narrower_registers(name: str, level: str) -> None:
    assert not compare.compare(built_for(level, name), meant(name), [1, 2]).differences


def test_a_library_is_built_for_the_processors_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COMPLL_MARCH", raising=False)
    assert "-march=native" in build.cpp_flags()
    monkeypatch.setenv("COMPLL_MARCH", "unheard-of")
    assert "-march=unheard-of" in build.cpp_flags()
    with pytest.raises(compll.BackendError, match="unheard-of"):
        compll.compile("identity", "cpp")
