"""Two processes whose DistributedDataParallel hands its buckets to casync: one launch for all claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from casync_jobs import free_port

import casync.torch as casync

WORKER = Path(__file__).with_name("ddp_worker.py")
CASES = [
    *("by_hook:ps", "by_hook:ring", "by_optimizer:ps", "by_optimizer:ring", "without_names", "against_ddp"),
    *("half", "accumulated", "unused", "resumed", "scaled", "scheduled", "by_engine"),
    *(f"rows:{codec}:sparse:{how}" for codec in ("None", "int8", "onebit") for how in ("hook", "optimizer")),
    *(f"rows:None:dense:{how}" for how in ("hook", "optimizer")),
]


def launch(*what: str) -> list[subprocess.Popen[str]]:
    address, port = f"127.0.0.1:{free_port()}", str(free_port())
    place = {"CASYNC_SIZE": "2", "CASYNC_ADDR": address, "CASYNC_TIMEOUT": "20", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), port, *what],
            env=os.environ | place | {"CASYNC_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def ran() -> list[dict[str, Any]]:
    """What each rank found, by case."""
    found: list[dict[str, Any]] = []
    for code, out, err in ended(launch(*CASES)):
        assert code == 0, err
        found.append({})
        for line in out.splitlines():
            found[-1].update(json.loads(line))
    return found


@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_a_hook_gives_the_bits_and_sends_the_bytes_of_the_optimizer(ran: Any, topology: str) -> None:
    """Though the first step has one bucket, and later ones have several, in another order."""
    (hashes, sent), (others, _) = (rank[f"by_hook:{topology}"] for rank in ran)
    assert hashes == others
    assert len(set(hashes)) == len(hashes)
    assert [hashes, sent] == ran[0][f"by_optimizer:{topology}"]


def test_without_names_replicas_are_the_same_too(ran: Any) -> None:
    assert ran[0]["without_names"] == ran[1]["without_names"]
    assert len(set(ran[0]["without_names"])) == len(ran[0]["without_names"])


def test_an_engine_gives_the_bits_of_the_ring_before_and_after_a_change_of_codec(ran: Any) -> None:
    """Of two ranks, whose sums have no order."""
    for rank in ran:
        assert rank["by_engine"] == [rank["scheduled"][0][:6], True]


def test_uncompressed_gradients_are_those_of_ddp(ran: Any) -> None:
    assert all(rank["against_ddp"] < 1e-6 for rank in ran)


def test_bfloat16_parameters_stay_the_same_on_all_ranks(ran: Any) -> None:
    assert ran[0]["half"] == ran[1]["half"]
    assert ran[0]["half"][0] != ran[0]["half"][2]


def test_passes_in_no_sync_add_up_and_travel_once(ran: Any) -> None:
    for rank in ran:
        difference, steps = rank["accumulated"]
        assert difference < 1e-6
        assert steps == 1


def test_a_parameter_used_on_one_rank_gets_a_gradient_on_all_and_one_used_on_none_keeps_its_residual(
    ran: Any,
) -> None:
    first, second = (rank["unused"] for rank in ran)
    assert first["sum of branch 0"] == second["sum of branch 0"] > 0
    for found in (first, second):
        assert found["residuals before"]
        assert found["residuals stay"]
        assert found["branch 1 is None"]


def test_a_saved_and_loaded_state_continues_bit_for_bit(ran: Any) -> None:
    """Momentum, which is the optimizer's, begins anew in both."""
    for rank in ran:
        whole, resumed = rank["resumed"]
        assert whole == resumed


def test_an_overflow_on_one_rank_reaches_the_scaler_of_all(ran: Any) -> None:
    hashes, scale = ran[0]["scaled"]
    assert ran[1]["scaled"] == [hashes, scale]
    assert scale == 512
    assert hashes[3] == hashes[2]
    assert hashes[4] != hashes[3]


def test_a_schedule_and_a_change_hold_for_a_hook(ran: Any) -> None:
    hashes, sent = ran[0]["scheduled"]
    assert ran[1]["scheduled"] == [hashes, sent]
    assert len(set(hashes)) == 8
    assert sent[0] == sent[2] > 2 * sent[3] == 2 * sent[5]


@pytest.mark.parametrize("codec", ["None", "int8", "onebit"])
def test_sparse_gradients_train_the_same_by_hook_and_by_optimizer_on_all_ranks(ran: Any, codec: str) -> None:
    hashes, sent = ran[0][f"rows:{codec}:sparse:hook"]
    assert len(set(hashes)) == len(hashes)
    assert ran[1][f"rows:{codec}:sparse:hook"][0] == hashes
    assert ran[0][f"rows:{codec}:sparse:optimizer"] == [hashes, sent]


def test_uncompressed_rows_train_as_dense_gradients_do_with_fewer_bytes(ran: Any) -> None:
    for how in ("hook", "optimizer"):
        (hashes, sent), (dense, more) = (ran[0][f"rows:None:{kind}:{how}"] for kind in ("sparse", "dense"))
        assert hashes == dense
        assert sent < more / 4


def test_a_failure_is_raised_out_of_backward_with_its_report() -> None:
    survivor, victim = ended(launch("killed"))
    assert victim[0] == -9
    assert survivor[0] == 0, survivor[2]
    (told,) = json.loads(survivor[1]).values()
    assert len(told) == 2
    for text in told:
        assert "rank 1 failed" in text
        assert "its process has ended" in text


def test_names_are_asked_for_where_a_plan_or_a_rule_needs_them() -> None:
    for options in ({"plan": "SeCoPaPlan.txt"}, {"rules": [("fc.*", None)]}):
        with pytest.raises(ValueError, match=r"pass named_parameters=model.module.named_parameters"):
            casync.State(**options)
    casync.State("onebit", rules=[casync.Rule("*", None, max_elements=100)])


def test_before_the_first_step_there_is_no_state_to_save() -> None:
    state = casync.State("onebit", named_parameters=torch.nn.Linear(2, 3).named_parameters())
    for call in (state.state_dict, state.stats, state.switch):
        with pytest.raises(RuntimeError, match="before the first step: run a backward pass"):
            call()
