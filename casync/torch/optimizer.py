"""`DistributedOptimizer`: an optimizer that steps with the gradients of all ranks."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import compll
from casync.plan import Gradient, Plan
from casync.synchronizer import Op, Spec, Synchronizer
from casync.torch.job import current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from casync.compute import BatchCodec
    from casync.job import Job
    from casync.metrics import Stats


def DistributedOptimizer(  # noqa: N802  (Horovod's name)
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    codec: str | Path | BatchCodec | None = None,
    topology: str = "ps",
    plan: str | Path | Plan | None = None,
    backward_passes_per_step: int = 1,
    op: Op = Op.AVERAGE,
    seed: int | None = None,
    job: Job | None = None,
) -> Any:
    """Make `optimizer` step with the gradients of all ranks; returns the same object, of a derived class.

    Collective: MismatchError on every rank if parameters, plan, codec, topology or version differ.

    codec: a shipped algorithm's name, a .pse file, a `Codec`, or None for no compression.
    topology: of the compressed gradients; uncompressed ones take the exact ring.
    plan: a file of `secopa plan`, a Plan, or None: every gradient of two or more dimensions is compressed, in
    as many partitions as there are ranks.
    backward_passes_per_step: gradients are summed over so many backward passes before they travel.
    seed: of the random codecs; default: that of `init`.

    Adds `synchronize()`, `skip_synchronize()` and `stats()`; `state_dict()` holds this rank's residuals too.
    Raises ValueError (parameters), PlanError, CodecError, and what `compll.compile` raises.
    """
    if isinstance(optimizer, _Distributed):
        raise ValueError("the optimizer is distributed already")
    if "step" in vars(optimizer):
        raise ValueError(
            "create the learning-rate scheduler after DistributedOptimizer, from what it returns"
        )
    if backward_passes_per_step < 1:
        raise ValueError(f"backward_passes_per_step is {backward_passes_per_step}: it must be 1 or more")
    job = job or current()
    parameters = _parameters(optimizer, named_parameters)
    gradients = tuple(Gradient(name, tuple(p.shape)) for name, p in parameters.items())
    if plan is None:
        plan = Plan.default(gradients, job.session.size)
    elif not isinstance(plan, Plan):
        plan = Plan.load(plan)
    compiled = compll.compile(codec) if isinstance(codec, str | Path) else codec
    spec = Spec(gradients, plan, compiled, topology.lower(), op, job.seed if seed is None else seed)
    cores = len(os.sched_getaffinity(0))
    synchronizer = Synchronizer(
        job.session.control, job.channels, spec, threads=max(1, cores // job.session.local_size)
    )
    job.synchronizers.append(synchronizer)
    kind = type(optimizer)
    optimizer.__class__ = type(f"Distributed{kind.__name__}", (_Distributed, kind), {})
    optimizer._casync = _Hooks(parameters, synchronizer, job, backward_passes_per_step)  # type: ignore[attr-defined]
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


@dataclass
class _Gradient:
    """A gradient in flight: its flat memory, and whether that is the gradient's own."""

    flat: torch.Tensor
    own: bool


class _Hooks:
    """Hands gradients over as the backward pass accumulates them, and takes the results back."""

    def __init__(
        self, parameters: dict[str, torch.nn.Parameter], synchronizer: Synchronizer, job: Job, passes: int
    ) -> None:
        self.parameters = parameters
        self.synchronizer = synchronizer
        self.control = job.session.control
        self.passes = passes
        self.fired: dict[str, int] = {}
        self.in_flight: dict[str, _Gradient] = {}
        self.synchronized = False
        self.skip = False
        for name, p in parameters.items():
            if p.numel():
                p.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]

    def _hook(self, name: str) -> Callable[[torch.Tensor], None]:
        def accumulated(p: torch.Tensor) -> None:
            self.control.check()
            count = self.fired[name] = self.fired.get(name, 0) + 1
            if self.synchronized or count > self.passes:
                raise RuntimeError(
                    f"{name} has had more than {self.passes} backward passes since the last step(): call "
                    "step() after them, or set backward_passes_per_step to their number"
                )
            if count == self.passes:
                self._submit(name, p)

        return accumulated

    def _submit(self, name: str, p: torch.Tensor) -> None:
        grad = p.grad
        if grad is None:
            return
        fault = None
        if grad.layout != torch.strided:
            fault = "is sparse: make it dense (e.g. Embedding(sparse=False))"
        elif grad.dtype != torch.float32:
            fault = f"has dtype {grad.dtype}: keep parameters in float32 (under autocast they are)"
        elif grad.device.type != "cpu":
            fault = f"is on {grad.device}: casync synchronizes gradients on the CPU so far"
        if fault:
            raise RuntimeError(f"the gradient of {name} {fault}")
        flat = grad.detach().reshape(-1)
        self.in_flight[name] = _Gradient(flat, flat.data_ptr() == grad.data_ptr())
        self.synchronizer.submit(name, flat.numpy())

    def synchronize(self) -> None:
        for name in self.fired:
            if name not in self.in_flight:  # had fewer passes than the others
                self._submit(name, self.parameters[name])
        outcome = self.synchronizer.synchronize()
        for name, values in outcome.values.items():
            p = self.parameters[name]
            gradient = self.in_flight.get(name)
            if values is None:
                continue
            if gradient is None:  # absent here, not on another rank
                p.grad = torch.from_numpy(values).view(p.shape)
            elif not gradient.own and p.grad is not None:
                p.grad.copy_(gradient.flat.view(p.shape))
        self.fired.clear()
        self.in_flight.clear()
        self.synchronized = True


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

    def stats(self) -> Stats:
        """What synchronization has cost this rank so far."""
        return self._casync.synchronizer.stats()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and under "casync" this rank's own residuals, step and seed."""
        if self._casync.fired:
            raise RuntimeError("state_dict() between backward() and step(): call step() first")
        return super().state_dict() | {"casync": _to_tensors(self._casync.synchronizer.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Collective: continue from `state_dict()` of this rank; StateError if it does not fit the run.

        A state without "casync", of an optimizer that was not distributed, leaves residuals and step alone.
        """
        own = {key: value for key, value in state_dict.items() if key != "casync"}
        super().load_state_dict(own)
        if "casync" in state_dict:
            self._casync.synchronizer.load_state_dict(_to_arrays(state_dict["casync"]))


def _to_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Residuals as tensors, so that `torch.save` and a weights-only `torch.load` take them."""
    return _with_values(state, torch.from_numpy)


def _to_arrays(state: dict[str, Any]) -> dict[str, Any]:
    return _with_values(state, lambda tensor: tensor.numpy())


def _with_values(state: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    feedback = state["feedback"]
    entries = [
        entry | {"values": {name: convert(values) for name, values in entry["values"].items()}}
        for entry in feedback["entries"]
    ]
    return state | {"feedback": feedback | {"entries": entries}}
