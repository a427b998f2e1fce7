"""Saved state as tensors, so that `torch.save` and a weights-only `torch.load` take it; how it is merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from casync import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def to_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """The state with a tensor for each array, of the same memory."""
    feedback = state["feedback"]
    entries = [
        entry | {"values": {name: torch.from_numpy(values) for name, values in entry["values"].items()}}
        for entry in feedback["entries"]
    ]
    left = {name: torch.from_numpy(values) for name, values in state["left"].items()}
    return state | {"feedback": feedback | {"entries": entries}, "left": left}


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of those that all ranks have saved, in any order, for another number of ranks or topology.

    states: what `state_dict()` of a distributed optimizer, or of a DDP `State`, returned on each rank. What
    comes back is of the same kind, for every rank of the new run to load; the optimizer's own state in it,
    the same on all ranks, is the first one's. Nothing that residuals held back is lost: it is added up, and
    goes to the new owner of each element. Raises StateError if states are missing, given twice, or do not
    belong together.
    """
    if states and all("casync" in state for state in states):
        merged = checkpoint.merge_states([state["casync"] for state in states])
        return {**states[0], "casync": to_tensors(merged)}
    return to_tensors(checkpoint.merge_states(states))
