"""What becomes of codec state when codecs change between two steps: nothing that was held back is lost.

    the old site         the new site of the same elements and role     then
    any state            the same names                                 it stays, bit for bit
    a residual           a residual of another name                     it stays
    a residual           anything else, or no site                      it is added to the next gradient
    other state          anything else, or no site                      it is dropped: it has no meaning there

A residual is the one state vector of a codec with error feedback. In units of an average it counts N times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casync.feedback import SUM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from casync.compute import BatchCodec
    from casync.feedback import Feedback

    Vector = NDArray[np.float32]


def hand_over(
    old: Feedback,
    new: Feedback,
    before: Mapping[str, BatchCodec],
    after: Mapping[str, BatchCodec],
    elements: Mapping[str, int],
) -> dict[str, Vector]:
    """Move the state of one rank; returns what is to be added to its next gradients, in units of a sum.

    before, after: the codecs by gradient. elements: of the gradients.
    """
    left: dict[str, Vector] = {}
    places = {(s.gradient, s.start, s.stop, s.role): (s, state) for s, state in new.places()}
    for site, state in old.places():
        there = places.get((site.gradient, site.start, site.stop, site.role))
        residual = before[site.gradient].info.feedback
        if there is not None:
            target, values = there
            if state.keys() == values.keys() or (residual and after[site.gradient].info.feedback):
                for source, copy in zip(state.values(), values.values(), strict=True):
                    np.multiply(source, new.factor(site.unit, target.unit), out=copy)
                continue
        if residual:
            (held,) = state.values()
            rest = left.setdefault(site.gradient, np.zeros(elements[site.gradient], np.float32))
            rest[site.start : site.stop] += held * new.factor(site.unit, SUM)
    return left
