"""Which codec in which topology: by the codec's properties and the tasks of the topology, never by a name.

    where a schedule has                   these are refused            because
    a hop: decode, add and encode again    codecs without a hop         `info.why["hop"]` says
    the encode of a sum                    state besides a residual     a sum has no such state
    ... of the whole sum, by `down`        majority votes               it is the vote; but other state may go
    ... of the sum of a part               majority votes               nodes would vote instead of ranks
    no encode of the whole sum             majority votes               it is the vote
    payloads added as they are             codecs that do not sum       `info.why["summable"]` says
                                           residuals of narrow types    none keeps what rounding the sum loses

Rows of a gradient are gathered, and take no state but a residual, of which each element is its own.
A majority vote is a dense codec that declares `[[no_hop]]`. `down` itself may be any codec that keeps nothing
besides a residual, where the whole sum is encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from casync.feedback import keeps_more
from casync.fields import narrow
from casync.plan import EXACT, ROWS
from casync.primitives import Encode, Merge
from casync.topologies import even_nodes, names, topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.codecs import BatchCodec
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
    takes_down: bool
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
        takes_down=any(task.down for task in encodes),
        encodes_the_sum=any(task.final for task in encodes),
        adds_payloads=any(isinstance(task, Merge) and task.direct for task in tasks),
    )


def check_codec(codec: BatchCodec, name: str, *, down: bool = False) -> None:
    """Raise CodecError if the codec's properties do not allow it in the topology of that name.

    down: whether sums have a codec of their own.
    """
    reason = refusal(codec, name, down=down)
    if not reason:
        return
    mends = []
    if others := [repr(other) for other in names() if _fits(codec, other, down)]:
        mends.append(f"use topology={' or '.join(others)}")
    if not down and _fits(codec, name, down=True):
        mends.append(f"give the sum a codec of its own: topology={name!r}, down='int8'")
    if down and _fits(codec, name, down=False):
        mends.append("leave down= away")
    raise CodecError(
        f"codec {codec.info.name} cannot be used in topology {name}: {reason}; {', or '.join(mends)}"
    )


def check_down(down: BatchCodec, name: str) -> None:
    """Raise CodecError if this codec cannot encode sums, or the topology of that name encodes none."""
    if not demands(name).takes_down:
        others = " or ".join(repr(other) for other in names() if demands(other).takes_down)
        raise CodecError(
            f"down={down.info.name} has nothing to do in topology {name}: no sum is encoded there; leave "
            f"down= away, or use topology={others}"
        )
    if keeps_more(down):
        raise CodecError(
            f"down={down.info.name} cannot encode sums: it keeps state besides error feedback, which has no "
            "meaning there; use a codec without state or with error feedback, for example down='int8'"
        )


def check_row_codec(codec: BatchCodec) -> None:
    """Raise CodecError if the codec's properties do not allow it for the rows of a gradient."""
    reason = (
        "it keeps state besides error feedback, which changes with every step, and a step has some rows only"
        if keeps_more(codec)
        else refusal(codec, ROWS)
    )
    if reason:
        raise CodecError(
            f"codec {codec.info.name} cannot be used for gradients of rows: {reason}; give these another one "
            "by a rule, for example rules=[('embed.*', 'int8')], or None"
        )


def _fits(codec: BatchCodec, name: str, down: bool) -> bool:
    return (demands(name).takes_down or not down) and not refusal(codec, name, down=down)


def refusal(codec: BatchCodec, name: str, *, down: bool = False) -> str:
    """Why the codec cannot be used in the topology of that name; empty if it can.

    down: whether sums have a codec of their own.
    """
    info, asked = codec.info, demands(name)
    other_state = keeps_more(codec)
    votes = not (info.hop or info.sparse or other_state)
    if asked.hops and not info.hop:
        return f"it has no hop ({info.why['hop']})"
    if asked.encodes_sums and other_state and not (down and asked.takes_down):
        return "it keeps state besides error feedback, which has no meaning where a sum is encoded"
    if asked.takes_down and votes and down:
        return f"it takes a vote when it encodes the sum, which down= does ({info.why['hop']})"
    if asked.adds_payloads and not info.summable:
        return f"its payloads cannot be added ({info.why.get('summable', 'decoding is not linear')})"
    if asked.adds_payloads and info.feedback and narrow(codec):
        return "rounding the sum of payloads would lose what no residual keeps"
    if asked.encodes_parts and votes:
        return f"it takes a vote of all ranks, and nodes would vote ({info.why['hop']})"
    if not asked.encodes_the_sum and votes:
        return f"it takes a vote when the sum is encoded, and no sum is ({info.why['hop']})"
    return ""


def choose(codecs: Sequence[BatchCodec], plan: Plan, nodes: Nodes, *, down: bool = False) -> str:
    """The topology of "auto": the plan's, if it was made for one; else by the properties of all codecs.

    What is sparse or keeps more than a residual is gathered, what sums is summed; the rest goes through `ps`,
    with two encodes in all, or, where nodes of several ranks are connected, through `hierarchical`. So does
    all where sums have a codec of their own (`down`). Raises CodecError if no topology allows all of them.
    """
    planned = plan.conditions.get("topology", "").lower()
    if planned in names():
        return planned
    if not codecs:
        return EXACT
    preferred: tuple[str, ...] = ("ps", "allgather")
    shared = len(nodes) > 1 and len(nodes) < sum(map(len, nodes))
    if down:
        preferred = ("hierarchical", *preferred) if shared else preferred
    elif any(codec.info.sparse for codec in codecs):
        preferred = ("allgather",)
    elif all(codec.info.summable for codec in codecs):
        preferred = ("direct", *preferred)
    elif shared:
        preferred = ("hierarchical", *preferred)
    for name in dict.fromkeys((*preferred, *names())):
        if all(_fits(codec, name, down) for codec in codecs):
            return name
    raise CodecError(
        f"no topology allows all of {', '.join(codec.info.name for codec in codecs)}: those that keep more "
        "than a residual go with sparse or rounding ones, but not with majority votes, which go with no "
        "down=; choose others"
    )
