"""What can be said of a codec before it runs: inferred from its IR, or declared by its author."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from compll import ir
from compll.check import Checked
from compll.ir_text import function_text
from compll.passes import has_feedback, is_sparse
from compll.payload import WIRE_VERSION


@dataclass(frozen=True)
class ParameterInfo:
    """One hyper-parameter as `codec.info.params` shows it."""

    type: str
    value: float | int | bool
    range: tuple[float, float] | None
    static: bool


@dataclass(frozen=True)
class Info:
    """The properties of a codec (LANGUAGE: "Parameters and properties").

    `why` gives for a property that is False the reason, where the compiler found one.
    """

    name: str
    params: Mapping[str, ParameterInfo]
    exact_size: bool
    summable: bool
    unbiased: bool
    stateful: bool
    random: bool
    keyed: bool
    feedback: bool
    hop: bool
    sparse: bool
    nonfinite: str
    why: Mapping[str, str]
    fingerprint: str


def infer(checked: Checked, *, error_feedback: bool) -> Info:
    """Return the properties of a codec that has both functions."""
    encode, decode = checked.encode, checked.decode
    assert encode is not None
    assert decode is not None
    feedback = has_feedback(encode)
    sparse = is_sparse(decode)
    why: dict[str, str] = {}
    summable = _summable(decode)
    if not summable:
        why["summable"] = (
            "payloads are not linear in the gradient: a sum of payloads is no payload of the sum"
        )
    if "unbiased" not in checked.declared:
        why["unbiased"] = "the file does not declare [[unbiased]]"
    if encode.counts:
        names = ", ".join(c.name for c in encode.counts)
        why["exact_size"] = f"the size depends on the data ({names})"
    if not feedback:
        why["feedback"] = "no state is kept as x - decode(compressed) with x = gradient + state"
    hop = True
    if "no_hop" in checked.declared:
        hop, why["hop"] = False, "the file declares [[no_hop]]"
    elif sparse:
        hop, why["hop"] = False, "its decode is a scatter: a sum of two payloads has another selection"
    elif encode.states and not (feedback and len(encode.states) == 1):
        hop, why["hop"] = False, f"it keeps a state that is no error feedback: {', '.join(encode.states)}"
    params = {
        p.name: ParameterInfo(str(p.elem), checked.values[p.name], p.range, p.static) for p in checked.params
    }
    return Info(
        name=checked.codec,
        params=params,
        exact_size=not encode.counts,
        summable=summable,
        unbiased="unbiased" in checked.declared,
        stateful=bool(encode.states),
        random=encode.random,
        keyed=checked.keyed,
        feedback=feedback,
        hop=hop,
        sparse=sparse,
        nonfinite="drops" if "drops" in checked.declared else "propagates",
        why=why,
        fingerprint=_fingerprint(checked, error_feedback=error_feedback),
    )


def _fingerprint(checked: Checked, *, error_feedback: bool) -> str:
    """Hash what two ranks must agree on: both functions, static parameters, feedback, the wire's version."""
    parts = [f"wire {WIRE_VERSION}", f"error_feedback {error_feedback}"]
    parts += [f"{p.name} = {checked.values[p.name]!r}" for p in checked.params if p.static]
    width = checked.width.others if checked.width else {}
    whole = (checked, *(width[w] for w in sorted(width)))
    parts += [function_text(f) for c in whole for f in (c.encode, c.decode) if f is not None]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _summable(decode: ir.Function) -> bool:
    """Whether every field is a float vector of a fixed length and the output a linear function of them."""
    fields = {f.name for f in decode.layout}
    if decode.counts or not all(
        f.elem.kind in ("float", "bfloat") and f.length is not None for f in decode.layout
    ):
        return False
    made = {b.name: b for b in decode.body if isinstance(b, ir.Map | ir.Scatter)}

    def linear(e: ir.Expr) -> bool:
        match e:
            case ir.Read(vector, place, _):
                b = made.get(vector)
                if isinstance(b, ir.Map):
                    return linear(b.body) and constant(place)
                if isinstance(b, ir.Scatter):
                    return b.base == ir.const(0, b.base.type) and linear(b.value) and constant(b.index)
                return vector in fields and constant(place)
            case ir.Apply("+" | "-", (a, b), _):
                return linear(a) and linear(b)
            case ir.Apply("*", (a, b), _):
                return (linear(a) and constant(b)) or (linear(b) and constant(a))
        return False

    def constant(e: ir.Expr) -> bool:
        """Whether a value depends on positions, parameters and keys only."""
        for x in ir.walk(e):
            if isinstance(x, ir.Scalar):
                return False
            if isinstance(x, ir.Read):
                b = made.get(x.vector)
                if not isinstance(b, ir.Map) or not constant(b.body):
                    return False
        return True

    return all(linear(b.body) for b in decode.body if isinstance(b, ir.Store))
