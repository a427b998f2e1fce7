"""Which codec in which topology: by the codec's properties and the tasks of the topology, never by a name.

    where a schedule has                   these are refused            because
    a hop: decode, add and encode again    codecs without a hop         `info.why["hop"]` says
    the encode of a sum                    state besides a residual     a sum has no such state
    ... of the sum of a part               majority votes               nodes would vote instead of ranks
    no encode of the whole sum             majority votes               it is the vote
    payloads added as they are             codecs that do not sum       `info.why["summable"]` says
                                           residuals of narrow types    none keeps what rounding the sum loses

A majority vote is a dense codec that declares `[[no_hop]]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from casync.fields import narrow
from casync.plan import EXACT
from casync.primitives import Encode, Merge
from casync.topologies import even_nodes, names, topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.compute import BatchCodec
    from casync.plan import Plan
    from casync.topologies import Nodes

AUTO = "auto"
"""The name that leaves the choice to `choose`."""


class CodecError(ValueError):
    """A codec that cannot run in a topology; says why and what can."""


@dataclass(frozen=True)
class Demands:
    """What a topology does with payloads, by the tasks of its schedule."""

    hops: bool
    encodes_sums: bool
    encodes_parts: bool
    encodes_the_sum: bool
    adds_payloads: bool


@lru_cache
def demands(name: str) -> Demands:
    """What the topology of that name asks of codecs; ValueError if there is none."""
    drawn = topology(name).schedule(4, [0], even_nodes(4, 2))
    tasks = [task for of_rank in drawn for task in of_rank]
    encodes = [task for task in tasks if isinstance(task, Encode) and not (task.exact or task.direct)]
    return Demands(
        hops=any(task.received is not None for task in encodes),
        encodes_sums=any(task.of_sum for task in encodes),
        encodes_parts=any(task.of_sum and not task.final for task in encodes),
        encodes_the_sum=any(task.final for task in encodes),
        adds_payloads=any(isinstance(task, Merge) and task.direct for task in tasks),
    )


def check_codec(codec: BatchCodec, name: str) -> None:
    """Raise CodecError if the codec's properties do not allow it in the topology of that name."""
    reason = refusal(codec, name)
    if reason:
        others = " or ".join(repr(other) for other in names() if not refusal(codec, other))
        raise CodecError(
            f"codec {codec.info.name} cannot be used in topology {name}: {reason}; use topology={others}"
        )


def refusal(codec: BatchCodec, name: str) -> str:
    """Why the codec cannot be used in the topology of that name; empty if it can."""
    info, asked = codec.info, demands(name)
    other_state = info.stateful and not (info.feedback and len(codec.new_state(1)) == 1)
    votes = not (info.hop or info.sparse or other_state)
    if asked.hops and not info.hop:
        return f"it has no hop ({info.why['hop']})"
    if asked.encodes_sums and other_state:
        return "it keeps state besides error feedback, which has no meaning where a sum is encoded"
    if asked.adds_payloads and not info.summable:
        return f"its payloads cannot be added ({info.why.get('summable', 'decoding is not linear')})"
    if asked.adds_payloads and info.feedback and narrow(codec):
        return "rounding the sum of payloads would lose what no residual keeps"
    if asked.encodes_parts and votes:
        return f"it takes a vote of all ranks, and nodes would vote ({info.why['hop']})"
    if not asked.encodes_the_sum and votes:
        return f"it takes a vote when the sum is encoded, and no sum is ({info.why['hop']})"
    return ""


def choose(codecs: Sequence[BatchCodec], plan: Plan, nodes: Nodes) -> str:
    """The topology of "auto": the plan's, if it was made for one; else by the properties of all codecs.

    What is sparse or keeps more than a residual is gathered, what sums is summed; the rest goes through `ps`,
    with two encodes in all, or, where nodes of several ranks are connected, through `hierarchical`.
    Raises CodecError if no topology allows all of them.
    """
    planned = plan.conditions.get("topology", "").lower()
    if planned in names():
        return planned
    if not codecs:
        return EXACT
    preferred: tuple[str, ...] = ("ps", "allgather")
    shared = len(nodes) > 1 and len(nodes) < sum(map(len, nodes))
    if any(codec.info.sparse for codec in codecs):
        preferred = ("allgather",)
    elif all(codec.info.summable for codec in codecs):
        preferred = ("direct", *preferred)
    elif shared:
        preferred = ("hierarchical", *preferred)
    for name in dict.fromkeys((*preferred, *names())):
        if not any(refusal(codec, name) for codec in codecs):
            return name
    raise CodecError(
        f"no topology allows all of {', '.join(codec.info.name for codec in codecs)}: those that keep more "
        "than a residual go with sparse or rounding ones, but not with majority votes; choose others"
    )
