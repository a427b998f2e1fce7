"""What a codec does to gradients: sizes, errors, bias, sums, feedback; each claim of `info` as a check."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from compll import payload
from compll.codec import Codec
from compll.driver import Program
from compll.tools import samples
from compll.tools.compare import SCALE, SEED, Case
from compll.types import BFLOAT16, HALF, Array, from_bytes, to_bytes

FALSE_ALARM = 1e-6  # of the test for bias: how often a codec without bias fails it
DRAWS = 400  # encodes for it, with seeds of their own
BIASED = 4096  # elements of its gradient
ROUNDING = {HALF: 2.0**-11, BFLOAT16: 2.0**-8}  # of a sum that a payload holds, relative; of others 2^-22
STEPS = 10  # of the check that feedback loses nothing


@dataclass(frozen=True)
class Check:
    """One claim and whether it holds; `passed` is None where the codec does not make the claim."""

    claim: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Fidelity:
    """How much of a gradient arrives.

    `ratio`: float32 bytes to payload bytes.  `error`: |decoded - g| / |g|.  `cosine`: of decoded and g.
    """

    gradient: str
    n: int
    payload_bytes: int
    ratio: float
    error: float
    cosine: float


def passed_through(codec: Codec, grad: Array, seed: int = 1) -> tuple[Array, Array]:
    """Return payload and decoding of a gradient, from a zero state."""
    state = codec.new_state(len(grad)) or None
    made = codec.encode(grad, seed=seed, shared_seed=seed, state=state)
    return made, codec.decode(made, len(grad), shared_seed=seed)


def fidelity(codec: Codec, label: str, n: int) -> Fidelity:
    """Measure one gradient of a kind of `samples.TAILS`."""
    g = samples.gradient(label, n)
    made, out = passed_through(codec, g)
    exact, got = g.astype(np.float64), out.astype(np.float64)
    norm, size = float(np.linalg.norm(exact)), float(np.linalg.norm(got))
    return Fidelity(
        gradient=label,
        n=n,
        payload_bytes=len(made),
        ratio=4 * n / max(len(made), 1),
        error=float(np.linalg.norm(got - exact)) / norm if norm else 0.0,
        cosine=float(got @ exact) / (norm * size) if norm and size else 0.0,
    )


def checks(codec: Codec, program: Program, cases: Sequence[Case]) -> Iterator[Check]:
    """Yield every check; `cases` are what the interpreter wrote for gradients of every kind and size."""
    yield _runs(cases)
    yield _size(codec, cases)
    yield _finite_states(cases)
    if codec.info.hop:
        yield _hop(codec, cases)
    yield _seeds(codec)
    yield _nonfinite(codec)
    yield unbiased(codec)
    yield _summable(codec, program)
    yield _feedback(codec)


def _runs(cases: Sequence[Case]) -> Check:
    failed = [c for c in cases if c.error]
    if failed:
        where = f"{len(failed)} of {len(cases)}; the first, '{failed[0].label}' of {failed[0].n} elements"
        return Check("every gradient is encoded and decoded", False, f"{where}: {failed[0].error}")
    sizes = sorted({c.n for c in cases})
    kinds = ", ".join(dict.fromkeys(c.label for c in cases))
    found = f"{len(cases)} gradients of {sizes[0]} to {sizes[-1]:,} elements: {kinds}"
    return Check("every gradient is encoded and decoded", True, found)


def _size(codec: Codec, cases: Sequence[Case]) -> Check:
    exact = codec.info.exact_size
    claim = "payloads have max_bytes(n)" if exact else "payloads have at most max_bytes(n)"
    sizes = [(c, len(c.written["payload"]), codec.max_bytes(c.n)) for c in cases if "payload" in c.written]
    for c, have, most in sizes:
        if have > most or (exact and have != most):
            return Check(claim, False, f"'{c.label}' of {c.n} elements: {have} bytes; max_bytes is {most}")
    return Check(claim, True, f"{len(sizes)} payloads")


def _finite_states(cases: Sequence[Case]) -> Check:
    claim, seen = "states stay finite", 0
    for c in cases:
        for name, raw in c.written.items():
            if "state " in name:
                seen += 1
                if not np.isfinite(np.frombuffer(raw, np.float32)).all():
                    return Check(claim, False, f"{name} after '{c.label}' of {c.n} elements is not")
    return Check(claim, True if seen else None, f"{seen} states" if seen else "it keeps none")


def _hop(codec: Codec, cases: Sequence[Case]) -> Check:
    """Compare the derived hop with its definition."""
    claim, seen = "hop is decode, add, encode", 0
    for c in cases:
        if "hop" not in c.written:
            continue
        seen += 1
        decoded = np.frombuffer(c.written["decoded"], np.float32)
        with np.errstate(all="ignore"):
            total = (c.gradient + decoded) * np.float32(SCALE)
        state = samples.state(codec, c.n) or None
        if codec.encode(total, seed=SEED, shared_seed=SEED, state=state).tobytes() != c.written["hop"]:
            return Check(claim, False, f"not for '{c.label}' of {c.n} elements")
    return Check(claim, True, f"{seen} payloads, bit for bit")


def _seeds(codec: Codec) -> Check:
    draws = codec.info.random or codec.info.keyed
    claim = "payloads depend on the seed" if draws else "payloads depend on the gradient alone"
    g = samples.gradient("normal", 40_000)
    first, again, other = (passed_through(codec, g, seed)[0].tobytes() for seed in (1, 1, 2))
    if first != again:
        return Check(claim, False, "the same gradient and seed give two payloads")
    return Check(claim, (first != other) == draws, "two encodes with one seed, one with another")


def _nonfinite(codec: Codec) -> Check:
    """Put a NaN or an infinity at one place after another: where all are seen, they propagate."""
    n, seen = 700, []
    for value in (np.nan, np.inf, -np.inf):
        for at in range(0, n, 37):
            g = samples.gradient("normal", n)
            g[at] = value
            seen.append(not np.isfinite(passed_through(codec, g)[1]).all())
    if codec.info.nonfinite == "propagates":
        found = f"{sum(seen)} of {len(seen)} are seen after decode"
        return Check(
            "NaN and infinity propagate", all(seen), found + ("" if all(seen) else "; declare [[drops]]")
        )
    found = f"{len(seen) - sum(seen)} of {len(seen)} are dropped"
    return Check("NaN and infinity are dropped", not all(seen), found)


def unbiased(codec: Codec, draws: int = DRAWS, n: int = BIASED) -> Check:
    """Test whether the mean of decodings with independent seeds is the gradient.

    Let e_k be the error of decoding k.  Three means over k have to be 0 if there is no bias: e_k along the
    gradient, e_k along a vector of ones, and the products of e_k and e_k+1 of disjoint pairs, whose mean is
    the squared norm of the bias, whatever its direction.  Each is a sum over n elements of independent draws,
    and is compared with its own standard error; the normal quantile is taken for FALSE_ALARM / 3 each.
    """
    claim = "decoding is unbiased"
    if not (codec.info.random or codec.info.keyed or codec.info.unbiased):
        return Check(claim, None, "not claimed: it draws no random numbers")
    g = samples.gradient("normal", n)
    errors = np.stack([passed_through(codec, g, seed)[1] - g for seed in range(draws)]).astype(np.float64)
    means = {
        "along the gradient": errors @ g,
        "along ones": errors.sum(axis=1),
        "squared": (errors[0::2] * errors[1::2]).sum(axis=1),
    }
    limit = NormalDist().inv_cdf(1 - FALSE_ALARM / 6)
    found, worst = "", 0.0
    for what, values in means.items():
        spread = float(values.std(ddof=1)) / math.sqrt(len(values))
        off = float(values.mean()) / spread if spread else (math.inf if values.any() else 0.0)
        if abs(off) >= worst:
            found, worst = f"bias {what} is {off:.1f} standard errors", abs(off)
    told = f"{found} (limit {limit:.1f}: false alarms below {FALSE_ALARM:g}), {draws} draws of {n:,}"
    if codec.info.unbiased:
        return Check(claim, worst < limit, told)
    hint = "; declare [[unbiased]] if it is" if worst < limit else ""
    return Check(claim, None, f"not claimed: {told}{hint}")


def _summable(codec: Codec, program: Program) -> Check:
    claim, n = "a sum of payloads decodes to the sum", 3000
    if not codec.info.summable:
        return Check(claim, None, f"not claimed: {codec.info.why['summable']}")
    parts = [passed_through(codec, samples.gradient("normal", n, seed), seed=1) for seed in (1, 2)]
    total, rounding = np.zeros(len(parts[0][0]), np.uint8), 0.0
    for place in payload.extents(program.encode.layout, n, program.checked.values):
        count, inside = place.count or 0, slice(place.offset, place.offset + place.size)
        one, two = (from_bytes(made[inside], place.elem, count) for made, _ in parts)
        total[inside] = to_bytes(one + two, place.elem)
        rounding = max(rounding, ROUNDING.get(place.elem, 2.0**-22))
    want = parts[0][1] + parts[1][1]
    off = float(np.abs(codec.decode(total, n, shared_seed=1) - want).max(initial=0))
    scale = float(np.abs(want).max(initial=0))
    return Check(claim, off <= rounding * scale, f"greatest difference {off:.2g} of {scale:.2g}")


def _feedback(codec: Codec) -> Check:
    """What was decoded over some steps, with the residual that is left, is what was given."""
    claim, n = "error feedback loses nothing", 3000
    if not codec.info.feedback or len(states := codec.new_state(n)) != 1:
        return Check(claim, None, "not claimed: " + codec.info.why.get("feedback", "it keeps other states"))
    given, arrived = np.zeros(n), np.zeros(n)
    for step in range(STEPS):
        g = samples.gradient("normal", n, step)
        made = codec.encode(g, seed=step, shared_seed=step, state=states)
        given += g
        arrived += codec.decode(made, n, shared_seed=step)
    (left,) = states.values()
    off = float(np.abs(given - arrived - left).max())
    scale = float(np.abs(arrived).max(initial=1))
    found = f"greatest difference after {STEPS} steps {off:.2g}"
    return Check(claim, off <= 1e-4 * scale, found)
