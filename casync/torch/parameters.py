"""A model's parameters: the same on all ranks before the first step, and listed for the planner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from casync.torch.job import current

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from casync.job import Job


def broadcast_parameters(
    params: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    root_rank: int = 0,
    *,
    job: Job | None = None,
) -> None:
    """Collective: give all ranks root's tensors, in place, bit for bit, whatever their dtype.

    params: `model.state_dict()` or `model.named_parameters()`. Raises MismatchError on every rank if names,
    shapes or dtypes differ, TypeError for an entry that is no tensor, ValueError for a root that is no rank.
    """
    job = current() if job is None else job
    named = sorted(dict(params).items())
    for name, value in named:
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}, not a tensor: leave it out of the broadcast"
            )
    if not 0 <= root_rank < job.session.size:
        raise ValueError(f"root_rank {root_rank} is none of the ranks 0 to {job.session.size - 1}")
    facts = {name: f"{value.dtype} {list(value.shape)}" for name, value in named}
    job.session.control.agree("broadcast_parameters", facts | {"root_rank": str(root_rank)})
    with torch.no_grad():
        # one contiguous copy on the CPU, or the tensor's own memory where that is one already
        copies = [value.detach().cpu().contiguous() for _, value in named]
        job.broadcaster.broadcast([c.reshape(-1).view(torch.uint8).numpy() for c in copies], root_rank)
        if job.session.rank != root_rank:
            for (_, value), copied in zip(named, copies, strict=True):
                if value.data_ptr() != copied.data_ptr():
                    value.copy_(copied)


def write_gradients(model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]], path: str | Path) -> None:
    """Write `name,elements` a line for every gradient of the model: the input of `secopa plan`."""
    named = model.named_parameters() if isinstance(model, torch.nn.Module) else model
    lines = [f"{name},{p.numel()}\n" for name, p in named if p.requires_grad and p.numel()]
    Path(path).write_text("".join(lines), encoding="utf-8")
