"""Jobs over the loopback network: each rank a thread that synchronizes gradients given step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from casync_jobs import in_threads

from casync.buffers import Pool
from casync.channels import Channels
from casync.plan import Entry, Gradient, Plan
from casync.rows import Rows
from casync.spec import Op, Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pytest
    from numpy.typing import NDArray

    from casync.metrics import Stats
    from casync.topologies import Nodes

    Vector = NDArray[np.float32]
    Step = list[dict[str, Vector | None]]  # a rank's gradients, by rank


@dataclass
class Ran:
    """What a rank of a job ended with: results a step, its state, its counts."""

    results: list[dict[str, Vector | None]] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    stats: Stats | None = None


def even_plan(gradients: Sequence[Gradient], nranks: int) -> Plan:
    """Compress what has two or more dimensions, in a part for each rank, however small."""
    return Plan(tuple(Entry(g.name, len(g.shape) >= 2, nranks) for g in gradients))


def spec_of(
    shapes: dict[str, tuple[int, ...]],
    codec: Any,
    topology: str,
    nranks: int,
    *,
    plan: Plan | None = None,
    op: Op = Op.AVERAGE,
    seed: int = 0,
    nodes: Nodes | None = None,
    down: Any = None,
    exact: str = "ring",
) -> Spec:
    gradients = tuple(Gradient(name, shape) for name, shape in shapes.items())
    plan = plan or even_plan(gradients, nranks)
    return Spec(gradients, plan, codec, topology, op, seed, nodes, down=down, exact=exact)


def run_job(
    spec: Spec,
    steps: Sequence[Step],
    *,
    order: Callable[[int, int, list[str]], list[str]] = lambda rank, step, names: names,  # noqa: ARG005
    states: Sequence[dict[str, Any] | None] | None = None,
    before_step: Mapping[int, Callable[[int, Synchronizer], None]] | None = None,
    **network: Any,
) -> list[Ran]:
    """Synchronize `steps` on as many ranks as they have; raises what the first failing rank raised.

    before_step: what each rank calls with its synchronizer before that step. states: to continue from.
    """
    ran = try_job(spec, steps, order=order, states=states, before_step=before_step, **network)
    for result in ran:
        if isinstance(result, BaseException):
            raise result
    return ran


def try_job(
    spec: Spec,
    steps: Sequence[Step],
    *,
    order: Callable[[int, int, list[str]], list[str]] = lambda rank, step, names: names,  # noqa: ARG005
    states: Sequence[dict[str, Any] | None] | None = None,
    before_step: Mapping[int, Callable[[int, Synchronizer], None]] | None = None,
    **network: Any,
) -> list[Any]:
    """As `run_job`; returns exceptions in the place of results."""
    size = len(steps[0])
    net = LoopbackNetwork(size, **network)

    def rank_main(rank: int) -> Ran:
        control = net.control(rank)
        synchronizer = Synchronizer(control, Channels(net.transport(rank), checksums=True), spec, threads=1)
        if states is not None:
            synchronizer.load_state_dict(states[rank])
        ran = Ran()
        try:
            for number, step in enumerate(steps):
                if before_step and number in before_step:
                    before_step[number](rank, synchronizer)
                mine = {name: copied(g) for name, g in step[rank].items()}
                for name in order(rank, number, list(mine)):
                    if (values := mine[name]) is not None and (isinstance(values, Rows) or values.size):
                        synchronizer.submit(name, values)
                outcome = synchronizer.synchronize()
                ran.results.append({name: copied(v) for name, v in outcome.values.items()})
                ran.finite.append(outcome.finite)
                synchronizer.advance()
            ran.state = synchronizer.state_dict()
            ran.stats = synchronizer.stats()
            control.gather("the end", b"")
        finally:
            synchronizer.close()
        return ran

    try:
        return in_threads(size, rank_main)
    finally:
        net.close()


def copied(values: Any) -> Any:
    """A gradient or a result of its own memory."""
    if isinstance(values, Rows):
        return Rows(values.indices.copy(), values.values.copy())
    return None if values is None else values.copy()


def random_steps(
    rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], nranks: int, steps: int
) -> list[Step]:
    """Gradients of every rank and step."""
    return [
        [
            {name: rng.standard_normal(int(np.prod(s))).astype(np.float32) for name, s in shapes.items()}
            for _ in range(nranks)
        ]
        for _ in range(steps)
    ]


def same_bits(a: Vector | None, b: Vector | None) -> bool:
    """Whether two results have the same bits; any NaN equals any NaN, as its sign depends on the CPU."""
    if a is None or b is None:
        return a is b
    same = (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))
    return a.shape == b.shape and bool(same.all())


def watch_pools(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[int], set[int]]:
    """How many buffers each pool has out, and all sizes that were taken, from now on."""
    out: Counter[int] = Counter()
    sizes: set[int] = set()
    take, give = Pool.take, Pool.give

    def counted_take(self: Pool, nbytes: int) -> Any:
        out[id(self)] += 1
        sizes.add(nbytes)
        return take(self, nbytes)

    def counted_give(self: Pool, buffer: Any) -> None:
        out[id(self)] -= 1
        give(self, buffer)

    monkeypatch.setattr(Pool, "take", counted_take)
    monkeypatch.setattr(Pool, "give", counted_give)
    return out, sizes
