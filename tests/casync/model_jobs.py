"""Jobs over the loopback network compared with the plain model, bit for bit: results and state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from casync_model import Model
from loopback_jobs import same_bits

from casync.plan import layout
from casync.primitives import Role
from casync.spec import Op
from casync.topologies import even_nodes

if TYPE_CHECKING:
    from loopback_jobs import Ran, Step

    from casync.spec import Spec

NODES = {nranks: even_nodes(nranks, 2) for nranks in (1, 2, 3, 4, 5)}


def model_of(spec: Spec, nranks: int) -> Model:
    plan = spec.plan if spec.codec else spec.plan.uncompressed()
    partitions = layout(plan, spec.gradients, spec.topology, nranks)
    average = spec.op is Op.AVERAGE
    return Model(
        nranks,
        spec.topology,
        spec.codec,
        partitions,
        average,
        spec.seed,
        NODES[nranks],
        down=spec.down,
    )


def check_against_model(spec: Spec, steps: list[Step], ran: list[Ran]) -> Model:
    model = model_of(spec, len(steps[0]))
    for number, step in enumerate(steps):
        expected = model.step(number, step)
        for rank, result in enumerate(ran):
            for name in expected:
                assert same_bits(expected[name], result.results[number][name]), (rank, number, name)
    for rank, result in enumerate(ran):
        for entry in result.state["feedback"]["entries"]:
            for name, kept in entry["values"].items():
                key = (rank, entry["gradient"], entry["offset"], Role[entry["role"]], name)
                assert same_bits(kept, model.residuals.get(key, np.zeros_like(kept))), key
    return model
