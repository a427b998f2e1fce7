"""`casync check` finds what holds and what does not, alone and in a real job, and its exit code says so."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from casync_jobs import IPV6, free_port, in_threads
from torch_jobs import good
from typer.testing import CliRunner

import compll
from casync import check, checkup, links
from casync.address import with_port
from casync.channels import Channels
from casync.cli import app
from casync.launch import Launch
from casync.plan import GRANULE, Entry, Gradient, Plan
from casync.topologies import even_nodes
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from pathlib import Path

ONEBIT, TOPK, RANDOMK = (compll.compile(name) for name in ("onebit", "topk", "randomk"))


def wish(*codecs: Any, topologies: tuple[str, ...] = (), plan: Plan | None = None) -> checkup.Wish:
    return checkup.Wish(codecs, topologies, check.GRADIENTS, plan)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_what_is_allowed_holds_and_the_rest_has_a_reason(ranks: int) -> None:
    verdicts = checkup.alone(wish(ONEBIT, TOPK, RANDOMK), even_nodes(ranks, 2))
    assert [v for v in verdicts if v.faults] == []
    refused = {(v.codec, v.topology) for v in verdicts if v.refused}
    assert refused == {("onebit", "direct"), ("topk", "direct"), ("topk", "ring")}
    for verdict in verdicts:
        if not verdict.refused:
            assert (verdict.messages > 0) is (ranks > 1)
            assert (verdict.ratio > 1) is (ranks > 1)


def test_codecs_of_any_length_send_at_most_what_their_schedule_says() -> None:
    threshold = compll.compile("threshold")
    assert not threshold.info.exact_size
    (verdict,) = checkup.alone(wish(threshold, topologies=("allgather",)), even_nodes(2))
    assert verdict.faults == ()


def test_a_plan_decides_what_is_compressed() -> None:
    exact = Plan(tuple(Entry(g.name, False, 2) for g in check.GRADIENTS))
    (verdict,) = checkup.alone(wish(ONEBIT, topologies=("ps",), plan=exact), even_nodes(2))
    assert verdict.ratio == 1
    assert verdict.nbytes >= 2 * 4 * sum(g.elements for g in check.GRADIENTS)


def test_other_bits_other_bytes_and_a_wrong_average_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def verdict() -> check.Verdict:
        (found,) = checkup.alone(wish(ONEBIT, topologies=("ps",)), even_nodes(3))
        return found

    stepped, traffic = check._stepped, check.traffic
    with monkeypatch.context() as patch:
        patch.setattr(
            check,
            "_stepped",
            lambda case, sync, control: (str(control.rank == 2), stepped(case, sync, control)[1]),
        )
        assert verdict().faults == ("rank 2 ended with other bits than rank 0",)
    with monkeypatch.context() as patch:
        patch.setattr(check, "traffic", lambda *held: check.Traffic(*_one_more(traffic(*held))))
        faults = verdict().faults
        assert len(faults) == 6
        assert "messages, its schedule has" in faults[0]
        assert "bytes, its schedule has" in faults[1]
    with monkeypatch.context() as patch:
        patch.setattr(check.np, "mean", lambda terms, **_: terms[0])
        wrong = "the average of attention.bias is wrong in step 0"
        assert verdict().faults == tuple(f"rank {rank}: {wrong}" for rank in range(3))


def _one_more(held: check.Traffic) -> tuple[int, int, bool]:
    return held.messages + 1, held.nbytes + 1, held.exact


def test_links_are_measured_between_all_neighbours() -> None:
    for size in (1, 2, 3):
        net = LoopbackNetwork(size)
        found = good(
            in_threads(size, lambda r, net=net: links.measure(net.control(r), Channels(net.transport(r))))
        )
        net.close()
        assert all(each == found[0] for each in found)
        assert len(found[0]) == (size if size > 1 else 0)
        assert all(link.latency > 0 and link.rate > 0 for link in found[0])


def test_exit_codes_tell_scripts_what_came_out(tmp_path: Path) -> None:
    def code(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["check", *options])
        return result.exit_code, result.output

    ended, text = code("--codec", "topk", "--ranks", "2")
    assert ended == 0
    assert 'topk: topology="auto" takes allgather' in text
    assert "topk in ring: it has no hop" in text
    assert code("--codec", "topk", "--topology", "ring")[0] == 1
    ended, text = code("--codec", "nothing")
    assert ended == 1
    assert "there is no algorithm 'nothing'" in text
    assert code("--topology", "star")[0] == 2
    assert code("--plan", str(tmp_path / "plan.txt"))[0] == 2
    ended, text = code("--input", str(tmp_path / "input.txt"))
    assert ended == 1
    assert "there is no such file; write it with" in text


def test_a_model_s_own_gradients_and_plan_are_taken(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(f"conv,{GRANULE}\nfc,10000\n")
    (tmp_path / "plan.txt").write_text("# topology: RING\n# nnodes: 2\nconv,n,1\nfc,y,2\n")
    options = [
        "--input",
        str(tmp_path / "input.txt"),
        "--plan",
        str(tmp_path / "plan.txt"),
        "--codec",
        "onebit",
    ]
    good_one = CliRunner().invoke(app, ["check", *options, "--topology", "ring", "--ranks", "2"])
    assert good_one.exit_code == 0, good_one.output
    other = CliRunner().invoke(app, ["check", *options, "--topology", "ps", "--ranks", "2"])
    assert other.exit_code == 1
    assert "made for topology RING, but this run has topology PS" in other.output


def test_without_a_launcher_or_with_one_rank_of_torchrun_the_ranks_are_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert checkup.place() == Launch()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert checkup.place() == Launch()


def test_in_a_real_job_rank_0_shows_ranks_links_and_what_holds() -> None:
    place = {"CASYNC_ADDR": with_port(IPV6, free_port()), "CASYNC_ENCRYPT": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "casync", "check", "--codec", "onebit"]
    processes = [
        subprocess.Popen(
            [*command, *(["--ranks", "2"] if size == "1" else [])],
            env=os.environ | place | {"CASYNC_RANK": str(rank), "CASYNC_SIZE": size},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, size in ((0, "2"), (1, "2"))
    ]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    out = ended[0][0]
    assert "2 ranks on 1 machine, transport zmq, encrypted" in out
    rows = [line.split() for line in out.splitlines()]
    assert [row[2:4] for row in rows if row[:1] in (["0"], ["1"])] == [[IPV6, "1"], [IPV6, "0"]]
    assert {row[1] for row in rows if row[-1:] == ["ok"]} == {"allgather", "hierarchical", "ps", "ring"}
    assert ended[1][0] == "", "one rank prints"


def test_the_launcher_says_how_many_ranks_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("SIZE", "2"), ("ADDR", "127.0.0.1:1")):
        monkeypatch.setenv(f"CASYNC_{name}", value)
    result = CliRunner().invoke(app, ["check", "--ranks", "2", "--codec", "onebit"])
    assert result.exit_code == 2
    assert "the launcher says how many" in result.output


def test_gradients_smaller_than_a_granule_stay_exact() -> None:
    small = (Gradient("a", (GRANULE - 1,)), Gradient("b", (GRANULE,)))
    case = check.Case(ONEBIT, "ps", small, None, even_nodes(2))
    assert [entry.compressed for entry in case.spec().plan.entries] == [False, True]


def test_a_codec_of_sums_is_checked_where_sums_are_encoded() -> None:
    """DGC needs one; the owners' payloads, and no others, have its length."""
    dgc, int8 = compll.compile("dgc"), compll.compile("int8")
    asked = checkup.Wish((dgc, ONEBIT), (), check.GRADIENTS, None, int8)
    verdicts = {(v.codec, v.topology): v for v in checkup.alone(asked, even_nodes(4, 2))}
    assert [v for v in verdicts.values() if v.faults] == []
    held = {where for where, v in verdicts.items() if not v.refused}
    assert held == {(f"{name}, down=int8", t) for name in ("dgc", "onebit") for t in ("ps", "hierarchical")}
    assert "down=int8 has nothing to do in topology ring" in verdicts["onebit, down=int8", "ring"].refused
    (alone,) = checkup.alone(wish(ONEBIT, topologies=("ps",)), even_nodes(4, 2))
    assert alone.ratio > verdicts["onebit, down=int8", "ps"].ratio > 4


def test_the_command_takes_a_codec_of_sums() -> None:
    options = ["check", "--codec", "dgc", "--ranks", "2", "--topology", "ps"]
    taken = CliRunner().invoke(app, [*options, "--down", "int8"])
    assert taken.exit_code == 0, taken.output
    assert 'dgc: topology="auto" takes ps' in taken.output
    refused = CliRunner().invoke(app, [*options, "--down", "dgc"])
    assert refused.exit_code == 1
    assert "down=dgc cannot encode sums" in refused.output
