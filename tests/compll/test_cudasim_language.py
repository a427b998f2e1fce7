"""The language on the simulator: the tests of the C++ backend run again, with `cudasim` in its place.

Scalars, conversions, random numbers, the order of reduction, and generated programs; shipped algorithms,
thread orders and sanitizers are in test_cudasim.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import test_differential
import test_language
import test_reduction_order
import test_rng
import test_scalars
import test_types
from compll_cases import compiled

# Collected here again, and so run with the fixture below.
from test_language import (  # noqa: F401
    test_any_name_may_be_used_also_a_keyword_of_cplusplus,
    test_cpp_groups_as_the_program_does_around_constants,
    test_free_functions_and_file_level_variables_mean_the_same,
    test_the_identity_is_a_codec,
    test_the_lambda_dialect_is_equal_on_cpp,
)
from test_reduction_order import (  # noqa: F401
    test_a_function_that_keeps_one_side_shows_the_walk,
    test_every_backend_reduces_in_the_one_order,
    test_integer_reductions_are_64_bits_wide_and_wrap,
    test_nan_and_zeros_of_both_signs_take_the_literal_minimum_and_maximum,
    test_the_order_holds_beyond_a_million_elements_at_every_thread_count,
)
from test_rng import (  # noqa: F401
    test_a_random_scalar_is_one_number_also_without_a_name,
    test_every_backend_draws_the_same_numbers_by_call_site_and_element,
    test_random_integers_between_any_bounds_are_equal_on_all_backends,
)
from test_scalars import (  # noqa: F401
    test_every_float_operator_on_every_pair_of_edges,
    test_every_integer_operator_on_every_pair_of_edges,
    test_floats_never_contract_to_a_fused_multiply_add,
    test_literals_are_rounded_to_float32_once,
    test_logic_select_clamp_and_bit_casts,
    test_scalars_and_vectors_compute_the_same,
    test_the_narrow_integer_types_compute_as_int,
    test_the_thread_s_flags_do_not_matter,
)
from test_types import (  # noqa: F401
    test_a_bool_vector_takes_a_byte_an_element,
    test_cpp_converts_between_all_types_as_the_interpreter_does,
)

from compll import codec as api

MODULES = (test_differential, test_language, test_reduction_order, test_rng, test_scalars, test_types)


def simulated(text: str, backend: str = "cpp", *args: Any, **params: Any) -> api.Codec:
    return compiled(text, "cudasim" if backend == "cpp" else backend, *args, **params)


def both(text: str, **params: Any) -> tuple[api.Codec, api.Codec]:
    return compiled(text, "interp", **params), simulated(text, **params)


@pytest.fixture(autouse=True)
def on_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        for name, replacement in (("compiled", simulated), ("both", both)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, replacement)


@pytest.mark.parametrize("seed", range(100, 104))
def test_generated_programs_are_bit_equal_on_the_simulator(seed: int) -> None:
    test_differential.test_generated_programs_are_bit_equal(seed)


def test_the_tests_above_run_on_the_simulator() -> None:
    text = test_language.IDENTITY
    assert [c.backend for c in test_scalars.both(text)] == ["interp", "cudasim"]
    assert test_differential.compiled(text, "cpp").backend == "cudasim"
