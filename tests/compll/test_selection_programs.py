"""Random programs that select mean the same after every pass, and on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import compiled, gradient, same_bits, write
from selection_programs import program

from compll import driver, ir
from compll.backends import Call, Values
from compll.backends.interp import interpret
from compll.passes import PASSES

BACKENDS = {"cpp": range(1000, 1012), "numba": (1004,), "cudasim": range(1100, 1104)}


def run(f: ir.Function, g: np.ndarray, payload: np.ndarray, values: Values) -> list[bytes]:
    """Run a function on copies; return its status and all that it has written."""
    n, out, room = len(g), g.copy(), payload.copy()
    state = {name: np.linspace(-1, 1, n, dtype=np.float32) for name in f.states}
    outcome = interpret(f, Call(n, out, room, 5, 6, 0.5, state, state), values)
    assert outcome.status >= 0
    written = room[: outcome.length] if f.op == "encode" else out
    return [written.tobytes(), *(s.tobytes() for s in state.values())]


@pytest.mark.parametrize("seed", range(60))
def test_every_pass_keeps_the_meaning(seed: int) -> None:
    program_ = driver.load([write(program(seed))], {})
    values = program_.checked.values
    for n, kind in ((0, "normal"), (1, "mixed"), (50, "mixed"), (1500, "normal")):
        g = gradient(kind, n)
        payload = np.zeros(64 * n + 4096, np.uint8)
        for typed in driver.unit_of(program_.checked).functions:
            want, f = run(typed, g, payload, values), typed
            for change in PASSES:
                f = change(f)
                assert run(f, g, payload, values) == want, (n, kind, typed.op, change.__name__)
            if typed.op == "encode":
                payload = np.frombuffer(want[0], np.uint8)


@pytest.mark.parametrize(("backend", "seed"), [(b, seed) for b, seeds in BACKENDS.items() for seed in seeds])
def test_backends_write_what_the_interpreter_writes(backend: str, seed: int) -> None:
    a, b = compiled(program(seed), "interp"), compiled(program(seed), backend)
    for n, kind in ((0, "normal"), (1, "mixed"), (50, "mixed"), (1500, "normal"), (70_001, "mixed")):
        g, written = gradient(kind, n), []
        for codec in (a, b):
            state = {k: np.linspace(-1, 1, n, dtype=np.float32) for k in codec.new_state(n)}
            payload = codec.encode(g, seed=5, shared_seed=6, state=state, threads=2).copy()
            merged = np.full(n, 0.5, np.float32)
            codec.decode_add(payload, merged, 0.5, shared_seed=6)
            written.append([payload, codec.decode(payload, n, shared_seed=6), merged, *state.values()])
        assert all(same_bits(x, y) for x, y in zip(*written, strict=True)), (n, kind)
