"""A synchronizer's state as tensors, so that `torch.save` and a weights-only `torch.load` take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def to_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """The state with a tensor for each array, of the same memory."""
    return _converted(state, torch.from_numpy)


def to_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """The state with an array for each tensor: what `to_tensors` was given."""
    return _converted(state, lambda tensor: tensor.numpy())


def _converted(state: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    feedback = state["feedback"]
    entries = [
        entry | {"values": {name: convert(values) for name, values in entry["values"].items()}}
        for entry in feedback["entries"]
    ]
    left = {name: convert(values) for name, values in state["left"].items()}
    return state | {"feedback": feedback | {"entries": entries}, "left": left}
