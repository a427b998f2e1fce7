"""Which codec in which topology: by the codec's properties, never by its name.

    topology        which codecs                         why the others cannot
    ps              no state, or error feedback alone    the owner encodes a sum, which has no other state
    hierarchical    as ps, but no majority vote          a vote of nodes is not one of ranks
    ring            those with a hop                     a hop decodes, adds and encodes again
    allgather       any, but no majority vote            the vote is the encode of the sum, and there is none
    direct          summable ones                        payloads are added as they are

A majority vote is a dense codec that declares `[[no_hop]]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casync.fields import narrow
from casync.plan import EXACT
from casync.topologies import names

if TYPE_CHECKING:
    from casync.compute import BatchCodec
    from casync.plan import Plan
    from casync.topologies import Nodes

AUTO = "auto"
"""The name that leaves the choice to `choose`."""

_PREFERRED = ("ps", "allgather", "direct", "hierarchical", "ring")


class CodecError(ValueError):
    """A codec that cannot run in a topology; says why and what can."""


def check_codec(codec: BatchCodec, topology: str) -> None:
    """Raise CodecError if the codec's properties do not allow it in this topology."""
    reason = refusal(codec, topology)
    if reason:
        others = [name for name in _PREFERRED if not refusal(codec, name)]
        raise CodecError(
            f"codec {codec.info.name} cannot be used in topology {topology}: {reason}; use topology="
            + " or ".join(repr(name) for name in others)
        )


def refusal(codec: BatchCodec, topology: str) -> str:
    """Why the codec cannot be used in this topology; empty if it can."""
    info = codec.info
    other_state = info.stateful and not (info.feedback and len(codec.new_state(1)) == 1)
    votes = not (info.hop or info.sparse or other_state)
    match topology:
        case "ring" if not info.hop:
            return f"it has no hop ({info.why['hop']})"
        case "ps" | "hierarchical" if other_state:
            return "it keeps state besides error feedback, which has no meaning where a sum is encoded"
        case "hierarchical" if votes:
            return f"it takes a vote of all ranks, and nodes would vote ({info.why['hop']})"
        case "allgather" if votes:
            return f"it takes a vote when the sum is encoded, and no sum is ({info.why['hop']})"
        case "direct" if not info.summable:
            return f"its payloads cannot be added ({info.why.get('summable', 'decoding is not linear')})"
        case "direct" if info.feedback and narrow(codec):
            return "rounding the sum of payloads would lose what no residual keeps"
        case _:
            return ""


def choose(codec: BatchCodec | None, plan: Plan, nodes: Nodes) -> str:
    """The topology of "auto": the plan's, if it was made for one; else by the codec's properties.

    What is sparse or keeps more than a residual is gathered, what sums is summed; the rest goes through `ps`,
    with two encodes in all, or, where nodes of several ranks are connected, through `hierarchical`.
    """
    planned = plan.conditions.get("topology", "").lower()
    if planned in names():
        return planned
    if codec is None:
        return EXACT
    shared = len(nodes) > 1 and len(nodes) < sum(map(len, nodes))
    if codec.info.sparse:
        order: tuple[str, ...] = ("allgather",)
    elif codec.info.summable:
        order = ("direct", *_PREFERRED)
    else:
        order = ("hierarchical", *_PREFERRED) if shared else _PREFERRED
    return next(name for name in order if not refusal(codec, name))
