"""Gradients of rows: every rank ends with the rows of all, the same bits, whatever each of them had."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_jobs import run_job, same_bits, try_job, watch_pools
from numpy_codecs import CODECS as NUMPY_CODECS
from real_codecs import REAL, SPARSE

import compll
from casync import rows
from casync.bodies import aligned
from casync.channels import Channels
from casync.checkpoint import merge_states
from casync.choice import CodecError
from casync.control import RankFailure
from casync.plan import Entry, Gradient, Plan, layout, schedule
from casync.primitives import Role
from casync.rows import Rows, split
from casync.rules import Rule, Schedule
from casync.seeds import private_seed, shared_seed
from casync.spec import Op, Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork
from casync.verify import verify
from compll.codec import Item, PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loopback_jobs import Step

HEIGHT, WIDTH = 50, 6
EMBED = Gradient("embed", (HEIGHT, 2, 3), rows=True)
DENSE = (Gradient("body", (70, 90)), Gradient("bias", (30,)))
INT8 = compll.compile("int8")
CODECS = (None, *NUMPY_CODECS, *REAL, INT8, SPARSE[1])


def named(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return value.info.name + value.info.feedback * "-feedback"


def spec_of(codec: Any, topology: str = "ps", op: Op = Op.AVERAGE, seed: int = 0, nranks: int = 3) -> Spec:
    gradients = (EMBED, *DENSE)
    rules = ((Rule("embed", codec), codec),)
    return Spec(gradients, Plan.default(gradients, nranks), NUMPY_CODECS[0], topology, op, seed, None, rules)


def random_rows(rng: np.random.Generator, most: int = 20) -> Rows:
    indices = rng.integers(0, HEIGHT, rng.integers(0, most))
    return Rows.of(indices, rng.standard_normal((indices.size, WIDTH), np.float32))


def random_steps(seed: int, nranks: int, steps: int) -> list[Step]:
    rng = np.random.default_rng(seed)
    dense = {g.name: g.elements for g in DENSE}
    return [
        [
            {"embed": random_rows(rng)} | {n: rng.standard_normal(k, np.float32) for n, k in dense.items()}
            for _ in range(nranks)
        ]
        for _ in range(steps)
    ]


class Model:
    """What becomes of rows, as plain loops. residuals: of each rank, for the whole gradient."""

    def __init__(self, spec: Spec, nranks: int) -> None:
        self.codec, self.run = spec.rules[0][1], spec.seed
        self.scale = np.float32(1 / nranks if spec.op is Op.AVERAGE else 1)
        self.residuals = np.zeros((nranks, HEIGHT, WIDTH), np.float32)

    def step(self, number: int, terms: Sequence[Rows | None], *, dropped: bool = False) -> Rows | None:
        """dropped: another gradient of the step is not finite."""
        residuals = self.residuals.copy()
        total: dict[int, Any] = {}
        finite = True
        for rank, term in enumerate(terms):
            if term is None:
                continue
            values = term.values
            finite = finite and bool(np.isfinite(values).all())
            if self.codec is not None and values.size and finite:
                values = self.coded(number, rank, term, residuals[rank])
            for index, row in zip(term.indices.tolist(), values, strict=True):
                total[index] = total[index] + row if index in total else row
        if finite and not dropped:
            self.residuals = residuals
        if all(term is None for term in terms):
            return None
        indices = np.array(sorted(total), np.int64)
        values = np.array([total[i] for i in indices.tolist()], np.float32).reshape(-1, WIDTH) * self.scale
        if self.codec is not None and not finite:
            values[:] = np.nan
        return Rows(indices, values)

    def coded(self, number: int, rank: int, term: Rows, residual: Any) -> Any:
        n, info = term.values.size, self.codec.info
        shared = shared_seed(self.run, number, "embed", 0)
        state = {name: residual[term.indices].reshape(-1) for name in self.codec.new_state(n)}
        item = Item(
            grad=term.values.reshape(-1),
            out=np.empty(self.codec.max_bytes(n), np.uint8),
            seed=private_seed(shared, rank, Role.WORKER, 0) if info.random or info.keyed else None,
            shared_seed=shared if info.keyed else None,
            state=state or None,
            new_state=state or None,
        )
        (made,) = self.codec.batch("encode", [item])
        for new in state.values():
            residual[term.indices] = new.reshape(-1, WIDTH)
        out = np.empty(n, np.float32)
        self.codec.batch("decode", [Item(payload=made.value, out=out, shared_seed=item.shared_seed)])
        return out.reshape(-1, WIDTH)


def same_rows(a: Rows | None, b: Rows | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a.indices, b.indices) and same_bits(a.values, b.values)


def check_against_model(spec: Spec, steps: list[Step], ran: Sequence[Any]) -> None:
    model = Model(spec, len(steps[0]))
    for number, step in enumerate(steps):
        dropped = not all(np.isfinite(g["body"]).all() for g in step)
        expected = model.step(number, [g["embed"] for g in step], dropped=dropped)
        for result in ran:
            assert same_rows(result.results[number]["embed"], expected), number
    for rank, result in enumerate(ran):
        for entry in result.state["feedback"]["entries"]:
            if entry["gradient"] == "embed":
                for kept in entry["values"].values():
                    assert same_bits(kept, model.residuals[rank].reshape(-1))


@given(st.lists(st.integers(0, 9)), st.integers(0, 99))
def test_rows_in_any_order_become_ascending_ones_and_duplicates_are_added(
    found: list[int], seed: int
) -> None:
    values = np.random.default_rng(seed).standard_normal((len(found), 3), np.float32)
    rows = Rows.of(np.array(found, np.int64), values)
    assert rows.indices.tolist() == sorted(set(found))
    assert rows.values.shape == (len(rows.indices), 3)
    for index, row in zip(rows.indices.tolist(), rows.values, strict=True):
        np.testing.assert_allclose(row, values[np.array(found) == index].sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nranks", range(1, 6))
@pytest.mark.parametrize("codec", CODECS, ids=named)
def test_the_sum_and_the_residuals_of_rows_are_those_of_plain_loops(codec: Any, nranks: int) -> None:
    """Whatever the timing: some ranks have no rows, some have no gradient, and in one step none has."""
    spec = spec_of(codec, "ps" if nranks % 2 else "ring", Op.SUM if nranks == 4 else Op.AVERAGE, 7, nranks)
    steps = random_steps(nranks, nranks, 6)
    nothing = Rows(np.empty(0, np.int64), np.empty((0, WIDTH), np.float32))
    for rank in range(nranks):
        steps[1][rank]["embed"] = None
        steps[2][rank]["embed"] = nothing
    steps[3][0]["embed"] = nothing
    steps[4][nranks - 1]["embed"] = None
    ran = run_job(spec, steps, delay=0.003, reorder=True, seed=nranks)
    check_against_model(spec, steps, ran)
    assert ran[0].results[1]["embed"] is None
    assert ran[0].results[2]["embed"].indices.size == 0


@pytest.mark.parametrize("codec", CODECS, ids=named)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_drops_the_step_s_residuals(codec: Any, bad: float) -> None:
    """Compressed rows, those of other ranks too, end as NaN; uncompressed ones keep all but that value."""
    spec = spec_of(codec)
    steps = random_steps(3, 3, 3)
    steps[2][0]["embed"] = None  # and has nothing of the step before to take
    values = steps[1][2]["embed"].values
    values[1, 4] = bad
    ran = run_job(spec, steps)
    check_against_model(spec, steps, ran)
    assert [result.finite for result in ran] == [[True, False, True]] * 3
    hurt = ~np.isfinite(ran[0].results[1]["embed"].values)
    assert hurt.all() if codec else hurt.sum() == 1


@pytest.mark.parametrize("codec", [None, INT8], ids=named)
def test_rows_of_halves_travel_in_their_type_and_what_it_cannot_hold_is_not_finite(codec: Any) -> None:
    gradients = (replace(EMBED, dtype="float16"),)
    spec = Spec(gradients, Plan.default(gradients, 2), codec, "ps", Op.SUM)
    at = np.array([3, 8], np.int64)
    values = [np.full((2, WIDTH), v, np.float32) for v in (2048.0, 1.0, 40000.0)]
    steps: list[Step] = [
        [{"embed": Rows(at, values[0])}, {"embed": Rows(at[1:], values[1][1:])}],
        [{"embed": Rows(at[:0], values[0][:0])}, {"embed": None}],
        [{"embed": Rows(at, values[2])}, {"embed": Rows(at[1:], values[2][1:])}],
    ]
    for result in run_job(spec, steps):
        assert result.finite == [True, True, False]
        assert result.results[0]["embed"].values[:, 0].tolist() == [2048, 2049]  # rounded once, by its owner
        assert result.results[1]["embed"].indices.size == 0
    if codec is None:
        assert [r.stats.bytes_sent for r in run_job(spec, steps[:1])] == [32 + 16 + 24, 32 + 16 + 12]


def test_a_dense_value_that_is_not_finite_leaves_the_residuals_of_rows_too() -> None:
    steps = random_steps(3, 3, 3)
    steps[1][0]["body"][17] = np.inf
    spec = spec_of(REAL[0])
    check_against_model(spec, steps, run_job(spec, steps))


@pytest.mark.parametrize("codec", [c for c in CODECS if c and c.info.feedback], ids=named)
@pytest.mark.parametrize("exact_from", [10, 9, 5])
def test_what_is_applied_and_what_is_left_add_up_also_over_a_change_to_exact(
    codec: Any, exact_from: int
) -> None:
    """A row's residual waits until the row is there again; without a codec all rows of it travel at once."""
    steps = random_steps(5, 3, 10)
    spec = spec_of(codec)
    ran = run_job(replace(spec, rules=((spec.rules[0][0], Schedule({0: codec, exact_from: None})),)), steps)
    given_sum, applied, kept = (np.zeros((HEIGHT, WIDTH)) for _ in range(3))
    for step, result in zip(steps, ran[0].results, strict=True):
        for gradients in step:
            given_sum[gradients["embed"].indices] += gradients["embed"].values
        applied[result["embed"].indices] += 3 * result["embed"].values.astype(np.float64)
    for rank in ran:
        for entry in rank.state["feedback"]["entries"]:
            if entry["gradient"] == "embed":
                kept += entry["values"]["residual"].reshape(HEIGHT, WIDTH)
        if "embed" in rank.state["left"]:
            kept += rank.state["left"]["embed"].reshape(HEIGHT, WIDTH)
    assert np.abs(applied + kept - given_sum).max() < 1e-4
    assert kept.any() == (exact_from == 10)


@pytest.mark.parametrize("codec", [None, REAL[0], INT8], ids=named)
def test_a_resumed_run_equals_the_uninterrupted_one(codec: Any) -> None:
    spec = spec_of(codec, seed=7)
    steps = random_steps(4, 3, 6)
    whole = run_job(spec, steps)
    rest = run_job(spec, steps[3:], states=[result.state for result in run_job(spec, steps[:3])])
    for a, b in zip(whole, rest, strict=True):
        for before, after in zip(a.results[3:], b.results, strict=True):
            assert same_rows(before["embed"], after["embed"])


def test_what_three_ranks_have_left_is_with_the_two_that_resume_in_another_topology() -> None:
    before, after = random_steps(4, 3, 5), random_steps(5, 2, 5)
    three = run_job(spec_of(REAL[0], op=Op.SUM), before)
    saved = merge_states([rank.state for rank in three])
    ran = run_job(spec_of(REAL[0], "ring", Op.SUM, nranks=2), after, states=[saved, saved])
    given_sum, applied, kept = (np.zeros((HEIGHT, WIDTH)) for _ in range(3))
    for step in [*before, *after]:
        for gradients in step:
            given_sum[gradients["embed"].indices] += gradients["embed"].values
    for result in [*three[0].results, *ran[0].results]:
        applied[result["embed"].indices] += result["embed"].values
    for rank in ran:
        for entry in rank.state["feedback"]["entries"]:
            if entry["gradient"] == "embed":
                kept += entry["values"]["residual"].reshape(HEIGHT, WIDTH)
    assert kept.any()
    assert np.abs(applied + kept - given_sum).max() < 1e-4


@pytest.mark.parametrize("codec", [None, INT8, REAL[0]], ids=named)
def test_a_frame_holds_the_indices_and_the_payload_at_their_true_lengths(codec: Any) -> None:
    gradients = (EMBED,)
    spec = Spec(gradients, Plan.default(gradients, 3), codec, "ring")
    steps = random_steps(1, 3, 2)
    for step in steps:
        for rank in step:
            del rank["body"], rank["bias"]
    for rank, result in enumerate(run_job(spec, steps)):
        expected = 0
        for step in steps:
            n = step[rank]["embed"].values.size
            payload = codec.max_bytes(n) if codec else 4 * n
            expected += 2 * (32 + (aligned(4 + 4 * n // WIDTH) + payload if n else 4))
        assert (result.stats.messages_sent, result.stats.bytes_sent) == (4, expected)
        assert result.stats.ratio == pytest.approx(1, abs=0.1) if codec is None else result.stats.ratio > 1.2


@pytest.mark.parametrize("codec", [None, REAL[0], SPARSE[1]], ids=named)
def test_buffers_are_given_back_and_shared_by_numbers_of_rows_that_differ(
    codec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, sizes = watch_pools(monkeypatch)
    gradients = (EMBED,)
    rng = np.random.default_rng(2)
    steps: list[Step] = [[{"embed": random_rows(rng, HEIGHT)} for _ in range(3)] for _ in range(12)]
    steps[5][1]["embed"].values[:] = np.nan
    steps[7][0]["embed"] = None
    run_job(Spec(gradients, Plan.default(gradients, 3), codec, "ps"), steps)
    assert set(taken.values()) == {0}
    for size in sizes:  # of what is made: powers of two; of what arrives: eighths of one
        assert size & (size - 1) == 0 or size % max(64, 1 << size.bit_length() - 4) == 0


@pytest.mark.parametrize("nranks", range(1, 10))
def test_the_schedule_with_rows_is_right(nranks: int) -> None:
    gradients = (DENSE[0], EMBED, DENSE[1], Gradient("other", (9,), rows=True))
    plan = Plan(tuple(Entry(g.name, g.name != "bias", 2) for g in gradients))
    partitions = layout(plan, gradients, "ps", nranks)
    assert [(p.label, p.width) for p in partitions if p.width] == [("embed", WIDTH), ("other", 1)]
    verify(schedule(partitions, "ps", nranks), len(partitions))


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_a_damaged_body_is_refused_or_has_rows_of_the_gradient(body: bytes) -> None:
    if len(body) > 4 and body[0] % 2:  # a number of rows that may be right
        body = bytes([body[0] % 8, 0, 0, 0]) + body[4:]
    try:
        indices, _ = split(np.frombuffer(body, np.uint8), HEIGHT)
    except PayloadError:
        return
    assert (np.diff(indices) > 0).all()
    assert ((indices >= 0) & (indices < HEIGHT)).all()


def test_a_body_that_is_damaged_names_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    write_head = rows.write_head

    def damaged(buffer: Any, indices: Any) -> None:
        write_head(buffer, indices)
        buffer[4:8].view("<u4")[0] = HEIGHT + 1

    monkeypatch.setattr("casync.row_compute.write_head", damaged)
    steps: list[Step] = [[{"embed": None}, {"embed": random_rows(np.random.default_rng(1))}]]
    gradients = (EMBED,)
    for failure in try_job(Spec(gradients, Plan.default(gradients, 2), None, "ps"), steps):
        assert isinstance(failure, RankFailure)
        assert failure.rank == 1
        assert "are not ascending ones of 50 rows" in failure.reason


def test_codecs_that_rows_cannot_have_are_refused_and_the_topology_asks_nothing_of_theirs() -> None:
    run_job(spec_of(SPARSE[1], "ring"), random_steps(1, 2, 1))  # a codec that cannot hop
    with pytest.raises(CodecError, match=r"dgc cannot be used for gradients of rows: it keeps state besides"):
        run_job(spec_of(SPARSE[0], "allgather"), random_steps(1, 2, 1))
    with pytest.raises(CodecError, match=r"signsgd cannot .* of rows: it takes a vote.*rules=\[\('embed"):
        run_job(spec_of(compll.compile("signsgd")), random_steps(1, 2, 1))
    assert spec_of(SPARSE[1], "auto").settled(2).topology == "ps"


def test_gradients_that_are_not_of_their_kind_or_shape_are_refused() -> None:
    network = LoopbackNetwork(1)
    sync = Synchronizer(network.control(0), Channels(network.transport(0)), spec_of(None, nranks=1))

    def given_rows(*indices: int, width: int = WIDTH) -> Rows:
        return Rows(np.array(indices, np.int64), np.zeros((len(indices), width), np.float32))

    try:
        with pytest.raises(TypeError, match="embed comes as Rows, not as an array of all elements"):
            sync.submit("embed", np.zeros(HEIGHT * WIDTH, np.float32))
        with pytest.raises(TypeError, match="body comes as an array of all elements, not as Rows"):
            sync.submit("body", given_rows(1))
        for wrong in (given_rows(-1), given_rows(3, 50), given_rows(3, width=5)):
            with pytest.raises(ValueError, match="embed has 50 rows of 6 elements; given are values"):
                sync.submit("embed", wrong)
    finally:
        sync.close()
        network.close()
