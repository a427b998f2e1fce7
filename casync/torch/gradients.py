"""Gradients on loan: what a tensor's memory looks like to casync, and how the result comes home."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from casync.dtypes import DTYPES
from casync.engines.base import EngineError
from casync.plan import EXACT, Gradient, Plan
from casync.rows import Rows
from casync.rules import compiled
from casync.spec import Op, Spec
from casync.synchronizer import Synchronizer
from casync.torch.places import CPU, Place, device_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from casync.job import Job
    from casync.rows import Values
    from casync.rules import CodecLike, Codecs


@dataclass(frozen=True)
class Settings:
    """How gradients are to be synchronized, as the user says it: arguments of `DistributedOptimizer`."""

    codecs: Codecs
    topology: str = "ps"
    exact: str = EXACT
    plan: str | Path | Plan | None = None
    op: Op = Op.AVERAGE
    seed: int | None = None
    nodes: Sequence[Sequence[int]] | None = None
    down: CodecLike = None

    def spec(self, job: Job, gradients: tuple[Gradient, ...]) -> Spec:
        """The same of a job's gradients. Raises PlanError, EngineError, and what `compll` does."""
        if job.session.encrypted and self.exact != EXACT:
            raise EngineError(
                f"exact={self.exact!r}: an engine sends gradients unencrypted, and encryption is asked for "
                f"(CASYNC_ENCRYPT=1); use exact={EXACT!r}"
            )
        plan = self.plan
        if plan is None:
            plan = self.codecs.plan(gradients, job.session.size)
        elif not isinstance(plan, Plan):
            plan = Plan.load(plan)
        return Spec(
            gradients,
            plan,
            self.codecs.default,
            self.topology.lower(),
            self.op,
            job.seed if self.seed is None else self.seed,
            job.session.nodes if self.nodes is None else tuple(map(tuple, self.nodes)),
            self.codecs.rules,
            compiled(self.down),
            self.exact,
        )


def synchronizer_of(
    job: Job,
    parameters: Mapping[str, torch.Tensor],
    settings: Settings,
    place: Place,
    sparse: Collection[str] = (),
    *,
    maker: object,
) -> Synchronizer:
    """Collective: what synchronizes the gradients of these parameters. Raises what `Synchronizer` raises.

    place: where they lie. sparse: the names of those whose gradients are sparse tensors.
    maker: what it is for: when that is gone, so is this.
    """
    for name, p in parameters.items():
        if _name(p.dtype) not in DTYPES:
            raise TypeError(
                f"the gradient of {name} has dtype {p.dtype}: casync synchronizes {', '.join(DTYPES)}; keep "
                "the parameter in one of these"
            )
    gradients = tuple(
        Gradient(name, tuple(p.shape), _name(p.dtype), name in sparse) for name, p in parameters.items()
    )
    cores = len(os.sched_getaffinity(0))
    made = Synchronizer(
        job.session.control,
        job.channels,
        settings.spec(job, gradients),
        threads=max(1, cores // job.session.local_size),
        watch=job.watch(),
        memory=place.memory,
    )
    job.keep(made, maker)
    return made


def loss_scale_of(scaler: Any) -> float:
    """What a GradScaler, or anything with `get_scale()`, multiplies the loss by; 1 if there is none."""
    return 1.0 if scaler is None else float(scaler.get_scale())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor_of(result: Values, like: torch.Tensor, place: Place) -> torch.Tensor:
    """A result as a float32 tensor of the shape of `like`: of rows, a sparse one without duplicates."""
    if not isinstance(result, Rows):
        return place.tensor(result).view(like.shape)
    indices = torch.from_numpy(result.indices).unsqueeze(0)
    values = torch.from_numpy(result.values).view(-1, *like.shape[1:])
    return torch.sparse_coo_tensor(indices, values, like.shape, is_coalesced=True, check_invariants=False)


@dataclass(frozen=True)
class Loan:
    """A gradient in flight. home: where its result belongs; given: what casync has of it."""

    home: torch.Tensor
    given: Values
    place: Place

    def bring_home(self, result: Values) -> None:
        """Write the result where it belongs, rounded to its type, unless it lies there already."""
        if isinstance(result, Rows) or self.place.begins_at(result) != self.home.data_ptr():
            self.home.copy_(tensor_of(result, self.home, self.place))


class Lender:
    """Lends gradients by name. What must be widened or gathered has a float32 copy, kept for later steps."""

    def __init__(self, place: Place = CPU) -> None:
        self._place = place
        self._copies: dict[str, torch.Tensor] = {}

    def lend(self, name: str, grad: torch.Tensor, *, sparse: bool) -> Loan:
        """A gradient as flat float32, or as rows; RuntimeError for one that casync cannot synchronize.

        sparse: whether the ranks have agreed that it is sparse.
        """
        fault = None
        if grad.layout == torch.sparse_coo and not sparse:
            fault = (
                f"is sparse: say so, DistributedOptimizer(..., sparse=[{name!r}]), and its rows travel; or "
                "have it made dense by sparse_as_dense=True"
            )
        elif sparse and (grad.layout != torch.sparse_coo or grad.sparse_dim() != 1):
            fault = "is not a sparse tensor of rows, as sparse= says: take its name out there"
        elif _name(grad.dtype) not in DTYPES:
            fault = f"has dtype {grad.dtype}: casync synchronizes {', '.join(DTYPES)}"
        elif device_of(grad) != self._place.device:
            fault = f"is on {grad.device}, and was on {self._place.device} when this was distributed"
        if fault:
            raise RuntimeError(f"the gradient of {name} {fault}")
        home = grad.detach()
        if sparse:
            values = home._values().reshape(-1, home.numel() // home.shape[0]).float()
            return Loan(grad, Rows.of(home._indices()[0].numpy(), values.numpy()), self._place)
        if home.dtype == torch.float32 and home.is_contiguous():
            return Loan(home, self._place.array(home.view(-1)), self._place)
        if name not in self._copies:
            self._copies[name] = torch.empty(home.numel(), device=home.device)
        flat = self._copies[name]
        flat.view(home.shape).copy_(home)
        return Loan(home, self._place.array(flat), self._place)
