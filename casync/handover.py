"""What becomes of codec state in another place: after a change of codecs, or behind a checkpoint.

    the old state        the new site of the same elements and role     then
    any vector           has one of the same name                       it stays, bit for bit
    a residual           has a residual of another name                 it stays
    a residual           anything else, or no site                      it is added to the next gradient
    another vector       anything else, or no site                      it is dropped: it has no meaning there

A residual is what has not been applied yet; in units of an average it counts N times. Sites need not begin
and end where they did: another plan cuts the vectors anew.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from casync.feedback import SUM, factor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from casync.feedback import Feedback, Held
    from casync.primitives import Role

    Vector = NDArray[np.float32]


def hand_over(
    old: Iterable[Held], new: Feedback, elements: Mapping[str, int], size: int
) -> dict[str, Vector]:
    """Move one rank's state into `new`, which is zero; returns what is to be added to its next gradients.

    elements: of each gradient, whole. size: the number of ranks. What is returned is in units of a sum.
    """
    left: dict[str, Vector] = {}
    places: dict[tuple[str, Role], list[Held]] = defaultdict(list)
    fresh = list(new.held())
    for place in fresh:
        places[place.gradient, place.role].append(place)
    for held in old:
        rest = None
        if held.residual is not None:
            rest = held.values[held.residual] * factor(held.unit, SUM, size)
        for place in places[held.gradient, held.role]:
            first, last = max(held.offset, place.offset), min(held.stop, place.stop)
            if first >= last:
                continue
            for name, vector in held.values.items():
                target = _target(name, held, place)
                if target is None:
                    continue
                np.multiply(
                    vector[first - held.offset : last - held.offset],
                    factor(held.unit, place.unit, size),
                    out=place.values[target][first - place.offset : last - place.offset],
                )
                if rest is not None and name == held.residual:
                    rest[first - held.offset : last - held.offset] = 0
        if rest is not None and rest.any():
            whole = left.setdefault(held.gradient, np.zeros(elements[held.gradient], np.float32))
            whole[held.offset : held.stop] += rest
    new.put(fresh)
    return left


def _target(name: str, held: Held, place: Held) -> str | None:
    """The vector of the new place that takes one of the old."""
    if name in place.values:
        return name
    return place.residual if name == held.residual else None
