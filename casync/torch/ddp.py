"""A communication hook for DistributedDataParallel: its buckets' gradients travel by casync.

    model = DistributedDataParallel(model)
    state = casync.State(codec="int8", topology="ps", named_parameters=model.module.named_parameters())
    model.register_comm_hook(state, casync.hook)

DDP fills buckets, whose number and order change after the first step; casync knows parameters only. The hook
splits a bucket by parameter and returns a future; all futures of a step are completed at its end, which DDP
waits for anyway before `backward()` returns.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future

from casync.control import RankFailure
from casync.rules import Codecs, Rule
from casync.spec import Op
from casync.torch.gradients import Lender, Loan, Settings, loss_scale_of, synchronizer_of, tensor_of
from casync.torch.job import current
from casync.torch.places import CPU, place_of
from casync.torch.state import to_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from casync.events import Outcome
    from casync.job import Job
    from casync.metrics import Stats
    from casync.plan import Plan
    from casync.report import Report
    from casync.rules import CodecLike
    from casync.synchronizer import Synchronizer


@dataclass(frozen=True)
class _Bucket:
    """A bucket in flight: its memory, the future that DDP waits for, and its gradients by parameter."""

    buffer: torch.Tensor
    future: Future[torch.Tensor]
    gradients: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class State:
    """What `hook` needs: how gradients are compressed, and the residuals of this rank.

    codec, rules, topology, exact, plan, op, scaler, seed, nodes, down, job: as for `DistributedOptimizer`.
    named_parameters: of the module that DDP wraps. Without it the parameters are called `parameter 0`, ... in
    the order of the first step's buckets, and neither a plan's file nor a rule can name them.
    """

    def __init__(
        self,
        codec: CodecLike = None,
        topology: str = "ps",
        *,
        rules: Iterable[Rule | tuple[str, CodecLike]] = (),
        exact: str = "ring",
        plan: str | Path | Plan | None = None,
        op: Op = Op.AVERAGE,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]] | None = None,
        scaler: Any = None,
        seed: int | None = None,
        nodes: Sequence[Sequence[int]] | None = None,
        down: CodecLike = None,
        job: Job | None = None,
    ) -> None:
        """Raise ValueError for a plan or a rule that names parameters which have no names."""
        codecs = Codecs.of(codec, rules)
        named = plan is not None or any(rule.name != "*" for rule, _ in codecs.rules)
        if named_parameters is None and named:
            raise ValueError(
                "a plan, or a rule with a pattern, needs the parameters' names: pass "
                "named_parameters=model.module.named_parameters() to State"
            )
        self._names = None if named_parameters is None else {id(p): name for name, p in named_parameters}
        self._settings = Settings(codecs, topology, exact, plan, op, seed, nodes, down)
        self._scaler, self._job = scaler, job
        self._synchronizer: Synchronizer | None = None
        self._saved: dict[str, Any] | None = None
        self._lender = Lender()
        self._loans: dict[str, Loan] = {}
        self._open: list[_Bucket] = []
        self._lock = threading.Lock()

    def stats(self) -> Stats:
        """What synchronization has cost this rank so far; RuntimeError before the first step."""
        return self._made("stats()").stats()

    def report(self) -> Report:
        """The same gradient by gradient, as `report` of a distributed optimizer."""
        return self._made("report()").report()

    def state_dict(self) -> dict[str, Any]:
        """This rank's own residuals, step and seed; RuntimeError before the first step."""
        return to_tensors(self._made("state_dict()").state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Collective: continue from `state_dict()` of this rank, or from `merge_states` of all ranks'.

        StateError on every rank, and nothing has changed, if it does not fit on one. Before the first step it
        is kept, and taken when the buckets have told which parameters there are.
        """
        if self._synchronizer is None:
            self._saved = state_dict
        else:
            self._synchronizer.load_state_dict(state_dict)

    def switch(self, codec: CodecLike = None, rules: Iterable[Rule | tuple[str, CodecLike]] = ()) -> None:
        """Collective, between steps: as `switch` of a distributed optimizer."""
        self._made("switch()").switch(Codecs.of(codec, rules))

    def _made(self, what: str) -> Synchronizer:
        if self._synchronizer is None:
            raise RuntimeError(f"{what} before the first step: run a backward pass of the DDP model first")
        return self._synchronizer

    def _take(self, bucket: GradBucket) -> Future[torch.Tensor]:
        """Hand over the bucket's gradients; the first step's wait until all parameters are known."""
        job = self._job = current() if self._job is None else self._job
        job.session.control.check()
        future: Future[torch.Tensor] = Future()
        sparse = bucket.buffer().layout == torch.sparse_coo  # then it is the gradient of one parameter
        gradients = [bucket.buffer()] if sparse else bucket.gradients()
        pairs = tuple(zip(bucket.parameters(), gradients, strict=True))
        begins = not self._open
        taken = _Bucket(bucket.buffer(), future, pairs)
        self._open.append(taken)
        if self._synchronizer is not None:
            if begins:
                self._begin(self._synchronizer)
            self._submit(self._synchronizer, taken)
        elif bucket.is_last():
            self._synchronizer = self._build(job)
            self._begin(self._synchronizer)
            for waiting in self._open:
                self._submit(self._synchronizer, waiting)
        if bucket.is_last():
            self._made("the hook").finish(self._ended)
        return future

    def _begin(self, synchronizer: Synchronizer) -> None:
        synchronizer.advance()
        synchronizer.loss_scale = loss_scale_of(self._scaler)

    def _submit(self, synchronizer: Synchronizer, bucket: _Bucket) -> None:
        """Submit a bucket's gradients. DDP puts zeros where a parameter was not used: such one is absent."""
        for p, grad in bucket.gradients:
            sparse = grad.layout == torch.sparse_coo
            if grad.numel() and bool((grad._values() if sparse else grad).any()):
                loan = self._loans[self._name(p)] = self._lender.lend(self._name(p), grad, sparse=sparse)
                synchronizer.submit(self._name(p), loan.given)

    def _ended(self, outcome: Outcome | None) -> None:
        """The step is done, or, with None, the job: complete its futures. In another thread, maybe twice."""
        with self._lock:
            buckets, self._open = self._open, []
            loans, self._loans = self._loans, {}
        if outcome is None:
            for bucket in buckets:
                bucket.future.set_exception(self._failure())  # type: ignore[arg-type]
            return
        for bucket in buckets:
            for p, grad in bucket.gradients:
                values = outcome.values.get(self._name(p))
                if values is not None and (loan := loans.get(self._name(p))) is not None:
                    loan.bring_home(values)
                elif values is not None:  # zero here, not on another rank
                    grad.copy_(tensor_of(values, grad, CPU))
            bucket.future.set_result(bucket.buffer)

    def _failure(self) -> Exception:
        assert self._job is not None
        try:
            self._job.session.control.check()
        except RankFailure as failure:
            return failure
        return RuntimeError("casync was shut down while a step was being synchronized")

    def _name(self, p: torch.Tensor) -> str:
        assert self._names is not None
        return self._names[id(p)]

    def _build(self, job: Job) -> Synchronizer:
        parameters = [p for bucket in self._open for p, _ in bucket.gradients]
        if self._names is None:
            self._names = {id(p): f"parameter {i}" for i, p in enumerate(parameters)}
        unnamed = sum(id(p) not in self._names for p in parameters)
        if unnamed:
            raise ValueError(
                f"{unnamed} parameters of the DDP model have no name in State's named_parameters; pass all: "
                "named_parameters=model.module.named_parameters()"
            )
        found = {id(p): p for p in parameters}
        ordered = {name: found[key] for key, name in self._names.items() if key in found}
        sparse = {
            self._name(p)
            for bucket in self._open
            for p, grad in bucket.gradients
            if grad.layout == torch.sparse_coo
        }
        if place_of(ordered) != CPU:
            raise RuntimeError(
                "the DDP model is on a GPU, and casync's hook synchronizes models on the CPU: wrap its "
                "optimizer by DistributedOptimizer instead, which takes gradients on a GPU"
            )
        made = synchronizer_of(job, ordered, self._settings, CPU, sparse, maker=self)
        made.load_state_dict(self._saved)
        return made


def hook(state: State, bucket: GradBucket) -> Future[torch.Tensor]:
    """The communication hook to register with a `State`. A failure of the job is raised out of backward()."""
    return state._take(bucket)


# DDP compares these with the types themselves, not with their names.
hook.__annotations__ |= {"bucket": GradBucket, "return": Future[torch.Tensor]}
