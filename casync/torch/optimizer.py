"""`DistributedOptimizer`: an optimizer that steps with the gradients of all ranks."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from casync.rules import Codecs, Rule
from casync.spec import Op
from casync.torch.gradients import Lender, Loan, Settings, loss_scale_of, synchronizer_of, tensor_of
from casync.torch.job import current
from casync.torch.places import place_of
from casync.torch.state import to_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from casync.control import Control
    from casync.job import Job
    from casync.metrics import Stats
    from casync.plan import Plan
    from casync.report import Report
    from casync.rules import CodecLike
    from casync.synchronizer import Synchronizer
    from casync.torch.places import Place


def DistributedOptimizer(  # noqa: N802  (Horovod's name)
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    codec: CodecLike = None,
    rules: Iterable[Rule | tuple[str, CodecLike]] = (),
    topology: str = "ps",
    exact: str = "ring",
    plan: str | Path | Plan | None = None,
    backward_passes_per_step: int = 1,
    op: Op = Op.AVERAGE,
    scaler: Any = None,
    seed: int | None = None,
    nodes: Sequence[Sequence[int]] | None = None,
    down: CodecLike = None,
    sparse: Iterable[str] = (),
    sparse_as_dense: bool = False,
    job: Job | None = None,
) -> Any:
    """Make `optimizer` step with the gradients of all ranks; returns the same object, of a derived class.

    Collective: MismatchError on every rank if parameters, plan, codec, topology or version differ.

    codec: a shipped algorithm's name, a .pse file, a `Codec`, a `Schedule`, or None for no compression.
    rules: `Rule`s, or pairs of a name's pattern and a codec; the first that matches a gradient decides.
    topology: of the compressed gradients. "auto": by the plan and the codecs' properties.
    exact: what sums the uncompressed ones: "ring", casync's own, or an engine's all-reduce: "mpi", "torch"
    (needs a process group), or "horovod" (needs `hvd.init()`).
    plan: a file of `secopa plan`, a Plan, or None: every gradient of two or more dimensions, and what a rule
    names, is compressed, in a partition for each rank, none below 2^18 elements, or several of 2^20 or more,
    and small ones together. What a plan leaves exact, no rule changes.
    backward_passes_per_step: gradients are summed over so many backward passes before they travel.
    scaler: the GradScaler that scales the loss: codecs and residuals then see gradients in their own units.
    Call `synchronize()` between `backward()` and `scaler.unscale_` or `scaler.step`.
    seed: of the random codecs; default: that of `init`.
    nodes: the ranks of each node, for the hierarchical topology; default: those that share a machine.
    down: the codec, or `Schedule`, of sums where the topology encodes them (`ps`, `hierarchical`); default:
    the gradient's own. Codecs with state besides error feedback, such as dgc, need one there.
    sparse: names, or patterns of names, of parameters whose gradients are sparse tensors, such as those of
    Embedding(sparse=True): of these the rows travel that a rank has touched, whatever the topology.
    sparse_as_dense: make sparse gradients dense before they travel.
    job: the ranks that train this together: a group of `new_group`; default: all.

    Adds `synchronize()`, `skip_synchronize()`, `switch()`, `stats()` and `report()`; `state_dict()` holds
    this rank's residuals too. Raises ValueError and TypeError (parameters, rules, nodes), PlanError,
    CodecError, EngineError, GpuError (parameters on a GPU, without what that needs), RuntimeError (on several
    devices), and what `compll.compile` raises.
    """
    if isinstance(optimizer, _Distributed):
        raise ValueError("the optimizer is distributed already")
    if "step" in vars(optimizer):
        raise ValueError(
            "create the learning-rate scheduler after DistributedOptimizer, from what it returns"
        )
    if backward_passes_per_step < 1:
        raise ValueError(f"backward_passes_per_step is {backward_passes_per_step}: it must be 1 or more")
    job = current() if job is None else job
    parameters = _parameters(optimizer, named_parameters)
    of_rows = _matching(sparse, parameters)
    settings = Settings(Codecs.of(codec, rules), topology, exact, plan, op, seed, nodes, down)
    place = place_of(parameters)
    synchronizer = synchronizer_of(job, parameters, settings, place, of_rows, maker=optimizer)
    kind = type(optimizer)
    optimizer.__class__ = type(f"Distributed{kind.__name__}", (_Distributed, kind), {})
    hooks = _Hooks(parameters, synchronizer, place, job.session.control, backward_passes_per_step, scaler)
    hooks.sparse, hooks.sparse_as_dense = of_rows, sparse_as_dense
    hooks.frozen = [p for group in optimizer.param_groups for p in group["params"] if not p.requires_grad]
    optimizer._casync = hooks  # type: ignore[attr-defined]
    return optimizer


def _parameters(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> dict[str, torch.nn.Parameter]:
    """The optimizer's parameters that need gradients, by name, in the order given."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    parameters: dict[str, torch.nn.Parameter] = {}
    names: dict[int, str] = {}
    for name, p in named_parameters:
        if name in parameters:
            raise ValueError(f"two parameters are called {name!r}: residuals are kept by name; rename one")
        if id(p) in names:
            raise ValueError(f"{name!r} and {names[id(p)]!r} are the same tensor: pass it once")
        if id(p) in owned:
            parameters[name] = p
            names[id(p)] = name
    if not parameters:
        raise ValueError(
            "no parameter to synchronize: pass named_parameters=model.named_parameters() of the model whose "
            "parameters the optimizer has"
        )
    missing = len(owned - names.keys())
    if missing:
        raise ValueError(
            f"{missing} parameters of the optimizer have no name in named_parameters and would drift apart "
            "between ranks; pass all of them"
        )
    return parameters


def _matching(patterns: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """The names that match a pattern; ValueError for one that none matches."""
    found: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            raise ValueError(f"sparse: no parameter is called {pattern!r}; there are {', '.join(names)}")
        found |= matching
    return frozenset(found)


class _Hooks:
    """Hands gradients over as the backward pass accumulates them, and takes the results back."""

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        synchronizer: Synchronizer,
        place: Place,
        control: Control,
        passes: int,
        scaler: Any,
    ) -> None:
        self.parameters = parameters
        self.synchronizer = synchronizer
        self.place = place
        self.control = control
        self.passes = passes
        self.scaler = scaler
        self.frozen: list[torch.nn.Parameter] = []
        self.sparse: frozenset[str] = frozenset()
        self.sparse_as_dense = False
        self.fired: dict[str, int] = {}
        self.lender = Lender(place)
        self.in_flight: dict[str, Loan] = {}
        self.synchronized = False
        self.skip = False
        for name, p in parameters.items():
            if p.numel():
                p.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        # a parameter and its hook are no cycle that Python's collector sees
        hooks = weakref.ref(self)

        def accumulated(p: torch.Tensor) -> None:
            if (alive := hooks()) is not None:
                alive._accumulated(name, p)

        return accumulated

    def _accumulated(self, name: str, p: torch.Tensor) -> None:
        self.control.check()
        count = self.fired[name] = self.fired.get(name, 0) + 1
        if self.synchronized and self.scaler is not None:
            self.synchronized = False  # the scaler has skipped a step whose gradients overflowed
        if self.synchronized or count > self.passes:
            raise RuntimeError(
                f"{name} has had more than {self.passes} backward passes since the last step(): call "
                "step() after them, or set backward_passes_per_step to their number"
            )
        if count == self.passes:
            self._submit(name, p)

    def _submit(self, name: str, p: torch.Tensor) -> None:
        if p.grad is None:
            return
        if not self.in_flight:
            self.synchronizer.loss_scale = loss_scale_of(self.scaler)
        if self.sparse_as_dense:
            p.grad = p.grad.to_dense()  # itself, if it is that already
        with self.place.in_order():
            loan = self.in_flight[name] = self.lender.lend(name, p.grad, sparse=name in self.sparse)
            self.synchronizer.submit(name, loan.given)

    def synchronize(self) -> None:
        if any(p.requires_grad for p in self.frozen):
            raise RuntimeError(
                "a parameter that was frozen when the optimizer was distributed needs gradients now, and the "
                "ranks have not agreed on it: freeze parameters after DistributedOptimizer, not before"
            )
        for name in self.fired:
            if name not in self.in_flight:  # had fewer passes than the others
                self._submit(name, self.parameters[name])
        if not self.in_flight:
            self.synchronizer.loss_scale = loss_scale_of(self.scaler)
        with self.place.in_order():
            outcome = self.synchronizer.synchronize()
        for name, values in outcome.values.items():
            if values is None:
                continue
            p, loan = self.parameters[name], self.in_flight.get(name)
            if loan is not None:
                loan.bring_home(values)
            else:  # absent here, not on another rank
                p.grad = tensor_of(values, p, self.place).to(p.dtype)
        self.fired.clear()
        self.in_flight.clear()
        self.synchronized = True
        self.synchronizer.advance()


class _Distributed(torch.optim.Optimizer):
    """What `DistributedOptimizer` puts before an optimizer's own class."""

    _casync: _Hooks

    def synchronize(self) -> None:
        """Wait until the gradients hold the result of all ranks; `step` then does not synchronize again.

        For work between backward and step, such as clipping. Raises the job's RankFailure.
        """
        self._casync.synchronize()

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Within this context `step` does not synchronize: as in Horovod, after `synchronize()`."""
        self._casync.skip = True
        try:
            yield
        finally:
            self._casync.skip = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Synchronize, unless that was done since the last backward pass, and step."""
        hooks = self._casync
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not (hooks.synchronized or hooks.skip):
            if hooks.scaler is not None:
                raise RuntimeError(
                    "the scaler has unscaled gradients that travel: call optimizer.synchronize() after "
                    "backward(), before scaler.unscale_(optimizer) or scaler.step(optimizer)"
                )
            if not hooks.fired:
                raise RuntimeError(
                    "step() without a backward pass: no gradient is there; call loss.backward() first, or "
                    "synchronize() if this rank really has none"
                )
            hooks.synchronize()
        hooks.synchronized = False
        result = super().step()
        return loss if closure is not None else result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer's own; RuntimeError while gradients travel."""
        if self._casync.fired:
            raise RuntimeError(
                "zero_grad() between backward() and step() would discard gradients that travel already; call "
                "step() or synchronize() first"
            )
        self._casync.synchronized = False
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: ARG002  (torch's signature)
        """Refused: the plan and the ranks have agreed on the parameters."""
        raise RuntimeError("add parameter groups before DistributedOptimizer")

    def switch(self, codec: CodecLike = None, rules: Iterable[Rule | tuple[str, CodecLike]] = ()) -> None:
        """Collective, between steps: compress by another codec and other rules from the next step on.

        As in `DistributedOptimizer`, of what the plan compresses. Residuals that the new codec has no place
        for are added to the next gradients. MismatchError on every rank if their choices differ.
        """
        if self._casync.fired:
            raise RuntimeError("switch() between backward() and step(): call step() first")
        self._casync.synchronizer.switch(Codecs.of(codec, rules))

    def stats(self) -> Stats:
        """What synchronization has cost this rank so far."""
        return self._casync.synchronizer.stats()

    def report(self) -> Report:
        """The same gradient by gradient, between steps: `print(optimizer.report())`, or its `as_dict()`.

        Errors relative to the gradients are known where `init(report=...)` or CASYNC_REPORT asks for it.
        """
        return self._casync.synchronizer.report()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and under "casync" this rank's own residuals, step and seed."""
        if self._casync.fired:
            raise RuntimeError("state_dict() between backward() and step(): call step() first")
        return super().state_dict() | {"casync": to_tensors(self._casync.synchronizer.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Collective: continue from `state_dict()` of this rank, or from `merge_states` of all ranks'.

        If it does not fit on one rank, nothing changes on any, and all raise: StateError, or what torch says.
        A state without "casync", of an optimizer that was not distributed, leaves residuals and step alone;
        then all ranks must load such a one.
        """
        if self._casync.fired:
            raise RuntimeError("load_state_dict() between backward() and step(): call step() first")
        before = self.state, self.param_groups  # which torch replaces, and does not change
        fault = None
        try:
            super().load_state_dict({key: value for key, value in state_dict.items() if key != "casync"})
        except (KeyError, TypeError, ValueError) as error:
            fault = error
        try:
            self._casync.synchronizer.load_state_dict(state_dict.get("casync"), fault)
        except Exception:
            self.state, self.param_groups = before
            raise
