"""Gradients on loan: what a tensor's memory looks like to casync, and how the result comes home."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from casync.dtypes import DTYPES
from casync.plan import Gradient, Plan
from casync.rules import Schedule, compiled
from casync.synchronizer import Op, Spec, Synchronizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from casync.job import Job
    from casync.rules import CodecLike, Codecs


def synchronizer_of(
    job: Job,
    parameters: Mapping[str, torch.Tensor],
    codecs: Codecs,
    topology: str,
    plan: str | Path | Plan | None,
    op: Op,
    seed: int | None,
    nodes: Sequence[Sequence[int]] | None,
    exact: str,
    down: CodecLike,
) -> Synchronizer:
    """Collective: what synchronizes the gradients of these parameters. Raises what `Synchronizer` raises."""
    sums = compiled(down)
    if isinstance(sums, Schedule):
        raise TypeError(
            "down= is one codec for the whole run, not a schedule: give a codec, a name or a path"
        )
    for name, p in parameters.items():
        if _name(p.dtype) not in DTYPES:
            raise TypeError(
                f"the gradient of {name} has dtype {p.dtype}: casync synchronizes {', '.join(DTYPES)}; keep "
                "the parameter in one of these"
            )
    gradients = tuple(Gradient(name, tuple(p.shape), _name(p.dtype)) for name, p in parameters.items())
    if plan is None:
        plan = codecs.plan(gradients, job.session.size)
    elif not isinstance(plan, Plan):
        plan = Plan.load(plan)
    seed = job.seed if seed is None else seed
    shared = job.session.nodes if nodes is None else tuple(map(tuple, nodes))
    spec = Spec(
        gradients, plan, codecs.default, topology.lower(), op, seed, shared, codecs.rules, sums, exact
    )
    cores = len(os.sched_getaffinity(0))
    made = Synchronizer(
        job.session.control,
        job.channels,
        spec,
        threads=max(1, cores // job.session.local_size),
        watch=job.watch(),
    )
    job.synchronizers.append(made)
    return made


def loss_scale_of(scaler: Any) -> float:
    """What a GradScaler, or anything with `get_scale()`, multiplies the loss by; 1 if there is none."""
    return 1.0 if scaler is None else float(scaler.get_scale())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Loan:
    """A gradient in flight. home: where its result belongs; flat: float32[n] that casync overwrites."""

    home: torch.Tensor
    flat: torch.Tensor

    def bring_home(self) -> None:
        """Write the result where it belongs, rounded to its type, unless it lies there already."""
        if self.flat.data_ptr() != self.home.data_ptr():
            self.home.copy_(self.flat.view(self.home.shape))


class Lender:
    """Lends gradients by name. What must be widened or gathered has a float32 copy, kept for later steps."""

    def __init__(self) -> None:
        self._copies: dict[str, torch.Tensor] = {}

    def lend(self, name: str, grad: torch.Tensor) -> Loan:
        """A gradient as flat float32; RuntimeError for one that casync cannot synchronize."""
        fault = None
        if grad.layout != torch.strided:
            fault = "is sparse: make it dense (e.g. Embedding(sparse=False))"
        elif _name(grad.dtype) not in DTYPES:
            fault = f"has dtype {grad.dtype}: casync synchronizes {', '.join(DTYPES)}"
        elif grad.device.type != "cpu":
            fault = f"is on {grad.device}: casync synchronizes gradients on the CPU so far"
        if fault:
            raise RuntimeError(f"the gradient of {name} {fault}")
        home = grad.detach()
        if home.dtype == torch.float32 and home.is_contiguous():
            return Loan(home, home.view(-1))
        if name not in self._copies:
            self._copies[name] = torch.empty(home.numel())
        flat = self._copies[name]
        flat.view(home.shape).copy_(home)
        return Loan(home, flat)
